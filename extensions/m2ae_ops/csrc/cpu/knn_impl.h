// k nearest neighbours, exact.
//
// Small clouds, in structure-of-arrays form: one pass computes all squared distances and the minima of at least 2k groups of
// points. The k-th smallest of those minima bounds the k-th smallest distance, so a second pass finds the few points within
// it, which are then sorted. Larger ones, laid out in buckets: the points around a query's place on the curve give the
// bound, and only buckets within it are looked at.
#pragma once

#include "buckets_impl.h"
#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr uint64_t kTopBit = uint64_t(1) << 63;  // keeps the count of trailing zeros defined for an empty word

template <typename K>
inline void sift_down(K* heap, int64_t size, int64_t at) {
  const K moved = heap[at];
  for (int64_t child; (child = 2 * at + 1) < size; at = child) {
    if (child + 1 < size && heap[child + 1] > heap[child]) ++child;
    if (heap[child] <= moved) break;
    heap[at] = heap[child];
  }
  heap[at] = moved;
}

// Moves the k smallest of `count` different keys to the front, ascending. `spare` has room for 64 keys.
template <typename K>
void sort_smallest(K* keys, int64_t count, int64_t k, K* spare) {
  if (count <= 64) {  // every key's place is the number of smaller ones: no branches
    int64_t places[64];
    for (int64_t i = 0; i < count; ++i) places[i] = 0;
    for (int64_t j = 0; j < count; ++j) {
      const K other = keys[j];
      for (int64_t i = 0; i < count; ++i) places[i] += other < keys[i];
    }
    for (int64_t i = 0; i < count; ++i) spare[places[i]] = keys[i];
    for (int64_t i = 0; i < k; ++i) keys[i] = spare[i];
    return;
  }
  for (int64_t i = k / 2 - 1; i >= 0; --i) sift_down(keys, k, i);
  for (int64_t i = k; i < count; ++i) {
    if (keys[i] < keys[0]) keys[0] = keys[i], sift_down(keys, k, 0);
  }
  for (int64_t last = k - 1; last > 0; --last) {
    const K top = keys[0];
    keys[0] = keys[last], keys[last] = top;
    sift_down(keys, last, 0);
  }
}

// The k-th smallest of G vectors of values, which may repeat: the largest value with fewer than k smaller ones.
template <typename T, int G>
inline T kth_smallest(const Vec<T>* vectors, int64_t k) {
  constexpr int W = Lanes<T>::W;
  T values[G * W];
  IVec<T> smaller_ones[G];
  for (int g = 0; g < G; ++g) store(values + g * W, vectors[g]), smaller_ones[g] = IVec<T>{};
  for (int i = 0; i < G * W; ++i) {
    const Vec<T> value = all<T>(values[i]);
    for (int g = 0; g < G; ++g) smaller_ones[g] = select(lt(value, vectors[g]), smaller_ones[g] + 1, smaller_ones[g]);
  }
  Vec<T> most = all<T>(-1);
  for (int g = 0; g < G; ++g) most = larger(select(lt(smaller_ones[g], all_int<T>(Int<T>(k))), vectors[g], all<T>(-1)), most);
  return largest(most);
}

template <typename T>
inline Vec<T> distances(const T* soa, int64_t stride, int64_t at, Vec<T> qx, Vec<T> qy, Vec<T> qz) {
  return squared_distance(qx - load(soa + at), qy - load(soa + stride + at), qz - load(soa + 2 * stride + at));
}

// Fills `all_sqdist` and returns a bound on the k-th smallest, from the minima of G vectors of groups.
template <typename T, int G>
T first_pass(const T* query, const T* soa, int64_t count, int64_t k, T* all_sqdist) {
  constexpr int W = Lanes<T>::W;
  const int64_t stride = padded(count);
  const Vec<T> qx = all<T>(query[0]), qy = all<T>(query[1]), qz = all<T>(query[2]), far = all<T>(__builtin_inf());
  Vec<T> minima[G];
  for (int g = 0; g < G; ++g) minima[g] = far;
  int64_t at = 0;
  for (; at + G * W <= stride; at += G * W) {
    for (int g = 0; g < G; ++g) {
      const Vec<T> d = smaller(distances(soa, stride, at + g * W, qx, qy, qz), far);  // NaN becomes infinity
      store(all_sqdist + at + g * W, d);
      minima[g] = smaller(d, minima[g]);
    }
  }
  for (int g = 0; at < stride; at += W, ++g) {
    const Vec<T> d = smaller(distances(soa, stride, at, qx, qy, qz), far);
    store(all_sqdist + at, d);
    minima[g] = smaller(d, minima[g]);
  }
  return kth_smallest<T, G>(minima, k);
}

template <typename T>
T first_pass(const T* query, const T* soa, int64_t count, int64_t k, T* all_sqdist) {
  constexpr int W = Lanes<T>::W;
  if (2 * k <= 1 * W) return first_pass<T, 1>(query, soa, count, k, all_sqdist);
  if (2 * k <= 2 * W) return first_pass<T, 2>(query, soa, count, k, all_sqdist);
  if (2 * k <= 4 * W) return first_pass<T, 4>(query, soa, count, k, all_sqdist);
  if (2 * k <= 8 * W) return first_pass<T, 8>(query, soa, count, k, all_sqdist);
  if (2 * k <= 16 * W) return first_pass<T, 16>(query, soa, count, k, all_sqdist);
  first_pass<T, 4>(query, soa, count, 1, all_sqdist);
  return __builtin_inf();
}

// Writes the keys of all points within `bound` in index order and returns their number. `near` has room for all indices
// and three more.
template <typename T>
int64_t collect(const T* all_sqdist, int64_t count, T bound, int32_t* near, Key<T>* keys) {
  constexpr int W = Lanes<T>::W, U = 64 / W;
  const Vec<T> limit = all<T>(bound);
  int64_t found = 0;
  for (int64_t at = 0; at < count; at += 64) {
    uint64_t word = 0;
    for (int u = 0; u < U; ++u) word |= uint64_t(bits(le(load(all_sqdist + at + u * W), limit))) << (u * W);
    // Four indices are written whether they are hits or not, so that words with few hits, nearly all, take no branch.
    const int64_t hits = __builtin_popcountll(word);
    for (int64_t i = 0; i < 4; ++i, word &= word - 1) near[found + i] = int32_t(at) + (__builtin_ctzll(word | kTopBit) & 63);
    for (int64_t i = 4; i < hits; ++i, word &= word - 1) near[found + i] = int32_t(at) + __builtin_ctzll(word);
    found += hits;
  }
  // Padding is infinitely far and last: it goes if the bound let it in.
  while (found && near[found - 1] >= count) --found;
  for (int64_t i = 0; i < found; ++i) keys[i] = make_key(all_sqdist[near[i]], near[i]);
  return found;
}

template <typename T>
void knn(const T* query, int64_t queries, const T* soa, int64_t count, int64_t k, void* scratch, T* sqdist, int64_t* idx) {
  T* all_sqdist = static_cast<T*>(scratch);
  const int64_t slots = (count + 63) / 64 * 64;
  Key<T>* keys = reinterpret_cast<Key<T>*>(all_sqdist + slots);
  int32_t* near = reinterpret_cast<int32_t*>(keys + slots);
  Key<T> spare[64];
  for (int64_t i = padded(count); i < slots; ++i) all_sqdist[i] = __builtin_inf();
  for (int64_t q = 0; q < queries; ++q) {
    const T bound = first_pass(query + 3 * q, soa, count, k, all_sqdist);
    const int64_t found = collect(all_sqdist, count, bound, near, keys);
    sort_smallest(keys, found, k, spare);
    for (int64_t i = 0; i < k; ++i) split_key(keys[i], sqdist[q * k + i], idx[q * k + i]);
  }
}

// Distances and indices of the points that a search has kept, in no particular order.
template <typename T>
struct Kept {
  T* sqdist;
  Int<T>* index;
  int64_t count;
};

// The number of values within `bound`, of a multiple of 16; NaN is not within.
template <typename T>
inline int64_t count_within(const T* values, int64_t count, T bound) {
  const Vec<T> limit = all<T>(bound);
  int64_t within = 0;
  for (int64_t i = 0; i < count; i += Lanes<T>::W) within += __builtin_popcount(bits(le(load(values + i), limit)));
  return within;
}

// Lowers a bound that at least k of `count` values are within, by bisection, until at most `enough` are or it stops paying.
template <typename T>
inline T lower_bound_on(const T* values, int64_t count, int64_t k, int64_t enough, T bound, int steps) {
  T below = 0;
  for (int step = 0; step < steps; ++step) {
    const T middle = below + (bound - below) / 2;
    const int64_t within = count_within(values, count, middle);
    below = within < k ? middle : below;
    bound = within < k ? bound : middle;
    if (within >= k && within <= enough) break;
  }
  return bound;
}

// A distance that at least k points are within, from those around the query's place on the curve.
template <typename T>
inline T first_bound(const Layout<T>& support, const Probe<T>& probe, uint32_t key, int64_t k, int64_t window, T* values) {
  constexpr int W = Lanes<T>::W;
  const int64_t from = window_around(support, key, window);
  if (window <= 2 * kBucket) {
    constexpr int U = kBucket / W;
    Vec<T> d[2 * U];
    for (int u = 0; u < U; ++u) d[u] = probe.to(support, from + u * W);
    if (window == kBucket) return kth_smallest<T, U>(d, k);
    for (int u = U; u < 2 * U; ++u) d[u] = probe.to(support, from + u * W);
    return kth_smallest<T, 2 * U>(d, k);
  }
  Vec<T> most{};
  for (int64_t i = 0; i < window; i += W) {
    const Vec<T> d = probe.to(support, from + i);
    store(values + i, d);
    most = larger(d, most);
  }
  return lower_bound_on(values, window, k, k + k / 8, largest(most), 8);
}

template <typename T>
inline void keep_within(const Layout<T>& support, const Probe<T>& probe, T bound, const int32_t* buckets, int64_t count, Kept<T>& kept) {
  constexpr int W = Lanes<T>::W;
  const Vec<T> limit = all<T>(bound);
  kept.count = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = int64_t(buckets[i]) * kBucket;
    for (int64_t at = first; at < first + kBucket; at += W) {
      const Vec<T> d = probe.to(support, at);  // NaN in the padding: not within
      const Mask<T> within = le(d, limit);
      append_values<T>(within, d, kept.sqdist + kept.count);
      kept.count += append_values<T>(within, load_int<T>(support.index + at), kept.index + kept.count);
    }
  }
}

// Drops kept points until not many more than k are left; all those at the distance of the k-th stay.
template <typename T>
inline void thin_out(Kept<T>& kept, int64_t k, T bound) {
  constexpr int W = Lanes<T>::W;
  for (int64_t i = kept.count; i < padded(kept.count); ++i) kept.sqdist[i] = __builtin_nan("");
  const Vec<T> limit = all<T>(lower_bound_on(kept.sqdist, padded(kept.count), k, k + kBucket / 2, bound, 16));
  int64_t left = 0;
  for (int64_t i = 0; i < kept.count; i += W) {
    const Vec<T> d = load(kept.sqdist + i);
    const IVec<T> who = load_int<T>(kept.index + i);
    const Mask<T> within = le(d, limit);
    append_values<T>(within, d, kept.sqdist + left);
    left += append_values<T>(within, who, kept.index + left);
  }
  kept.count = left;
}

// The number of kept points before each: nearer, or as near with a lower index (`ties`: else those count as not before). Two
// buckets at a time share the walk over the others.
template <typename T, bool ties>
inline int64_t rank_kept(const Kept<T>& kept, Int<T>* ranks) {
  constexpr int W = Lanes<T>::W, U = 2 * kBucket / W;
  IVec<T> sum{};
  for (int64_t i = 0; i < kept.count; i += 2 * kBucket) {
    IVec<T> before[U], who[U];
    Vec<T> mine[U];
    for (int u = 0; u < U; ++u) {
      before[u] = IVec<T>{}, mine[u] = load(kept.sqdist + i + u * W), who[u] = load_int<T>(kept.index + i + u * W);
    }
    for (int64_t j = 0; j < kept.count; ++j) {
      const Vec<T> other = all<T>(kept.sqdist[j]);
      for (int u = 0; u < U; ++u) {
        Mask<T> first = lt(other, mine[u]);
        if constexpr (ties) first = first | (eq(other, mine[u]) & lt(all_int<T>(kept.index[j]), who[u]));
        before[u] = select(first, before[u] + 1, before[u]);
      }
    }
    for (int u = 0; u < U; ++u) store_int<T>(ranks + i + u * W, before[u]), sum += before[u];
  }
  int64_t total = 0;  // NaN has no one before it, so the padding adds nothing
  for (int lane = 0; lane < W; ++lane) total += sum[lane];
  return total;
}

// Writes the k nearest of the kept points in order. The arrays of `kept` are followed by room for 32 more, `sorted` has as much.
template <typename T>
inline void write_nearest(Kept<T>& kept, int64_t k, Int<T>* ranks, const Kept<T>& sorted, Key<T>* keys, T* sqdist, int64_t* idx) {
  const int64_t n = kept.count;
  if (n > 2 * k + 128) {  // that many only on degenerate clouds
    Key<T> spare[64];
    for (int64_t i = 0; i < n; ++i) keys[i] = make_key(kept.sqdist[i], kept.index[i]);
    sort_smallest(keys, n, k, spare);
    for (int64_t i = 0; i < k; ++i) split_key(keys[i], sqdist[i], idx[i]);
    return;
  }
  const Vec<T> none = all<T>(__builtin_nan(""));
  for (int64_t i = n; i < n + 2 * kBucket; i += Lanes<T>::W) store(kept.sqdist + i, none);
  // Without ties all ranks differ and add up to the sum of 0 .. n - 1.
  if (rank_kept<T, false>(kept, ranks) != n * (n - 1) / 2) rank_kept<T, true>(kept, ranks);
  for (int64_t i = 0; i < n; ++i) sorted.sqdist[ranks[i]] = kept.sqdist[i], sorted.index[ranks[i]] = kept.index[i];
  for (int64_t i = 0; i < k; ++i) sqdist[i] = sorted.sqdist[i], idx[i] = sorted.index[i];
}

// The same as `knn` for the sorted queries from place `first` on; results go to the queries' own places.
template <typename T>
void knn_sorted(const void* query_layout, int64_t first, int64_t number, const void* support_layout, int64_t k, void* scratch,
                T* sqdist, int64_t* idx) {
  constexpr int64_t kTogether = 16;  // queries that are bounded before any of them is searched for: nothing to wait for between them
  const Layout<T>&queries = *static_cast<const Layout<T>*>(query_layout), &support = *static_cast<const Layout<T>*>(support_layout);
  const int64_t slots = padded(support.count) + 2 * kBucket, window = padded(2 * k);
  Pieces pieces{static_cast<char*>(scratch)};
  Kept<T> kept{pieces.take<T>(slots), pieces.take<Int<T>>(slots), 0}, sorted{pieces.take<T>(slots), pieces.take<Int<T>>(slots), 0};
  Int<T>* ranks = pieces.take<Int<T>>(slots);
  Key<T>* keys = pieces.take<Key<T>>(slots);
  int32_t *supers = pieces.take<int32_t>(slots), *buckets = pieces.take<int32_t>(slots);
  const auto probe = [&](int64_t q) { return Probe<T>(queries.x[q], queries.y[q], queries.z[q]); };
  for (int64_t start = first; start < first + number; start += kTogether) {
    const int64_t end = start + kTogether < first + number ? start + kTogether : first + number;
    T bounds[kTogether];
    for (int64_t q = start; q < end; ++q) {
      const bool enough = q < queries.live && window <= support.live;
      bounds[q - start] = enough ? first_bound(support, probe(q), queries.key[q], k, window, kept.sqdist) : T(__builtin_inf());
    }
    for (int64_t q = start; q < end; ++q) {
      const int64_t to = queries.index[q];
      const T bound = bounds[q - start];
      if (!(bound < __builtin_inf())) {  // too little finite to find, or a query that is not finite
        knn(queries.points + 3 * to, 1, support.soa, support.count, k, scratch, sqdist + to * k, idx + to * k);
        continue;
      }
      const int64_t near = list_buckets(support, GridProbe(queries.grid, queries.spot, queries.spot, q, bound), supers, buckets);
      keep_within(support, probe(q), bound, buckets, near, kept);
      if (kept.count > k + 2 * kBucket) thin_out(kept, k, bound);
      write_nearest(kept, k, ranks, sorted, keys, sqdist + to * k, idx + to * k);
    }
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
