// The first neighbours within a radius, in index order, exact.
//
// In a cloud laid out in buckets a ball with few points costs the buckets it touches and the sorting of what they hold. A ball
// with many is quicker filled by scanning the points in index order until there are enough; the number of buckets
// touched tells which.
#pragma once

#include "buckets_impl.h"
#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

template <typename T>
inline Vec<T> soa_distances(const T* soa, int64_t stride, int64_t at, const Probe<T>& probe) {
  return squared_distance(probe.x - load(soa + at), probe.y - load(soa + stride + at), probe.z - load(soa + 2 * stride + at));
}

// Fills up with the first hit, or with index 0 where there is none.
inline void fill_row(int64_t* out, int64_t found, int64_t k) {
  const int64_t filling = found ? out[0] : 0;
  for (; found < k; ++found) out[found] = filling;
}

template <typename T>
inline void scan_ball(const T* query, const T* soa, int64_t count, T limit, int64_t k, int64_t* out) {
  constexpr int W = Lanes<T>::W, U = kBucket / W;
  const int64_t stride = padded(count);
  const Probe<T> probe(query[0], query[1], query[2]);
  int64_t found = 0;
  // The padding is NaN and never a hit.
  for (int64_t at = 0; at < stride && found < k; at += kBucket) {
    uint32_t hits = 0;
    for (int u = 0; u < U; ++u) hits |= bits(lt(soa_distances(soa, stride, at + u * W, probe), all<T>(limit))) << (u * W);
    for (; hits && found < k; hits &= hits - 1) out[found++] = at + __builtin_ctz(hits);
  }
  fill_row(out, found, k);
}

template <typename T>
void ball_query(const T* query, int64_t queries, const T* soa, int64_t count, T limit, int64_t k, int64_t* idx) {
  for (int64_t q = 0; q < queries; ++q) scan_ball(query + 3 * q, soa, count, limit, k, idx + q * k);
}

// Writes the k smallest of `count` different indices, ascending; `index` is followed by room for 16 more.
template <typename T>
inline int64_t write_lowest(Int<T>* index, int64_t count, int64_t k, Int<T>* ranks, uint64_t* seen, int64_t words, int64_t* out) {
  constexpr int W = Lanes<T>::W;
  if (count > 4 * kBucket) {  // a bit for every point, read in order
    for (int64_t i = 0; i < count; ++i) seen[index[i] / 64] |= uint64_t(1) << (index[i] % 64);
    int64_t found = 0;
    for (int64_t w = 0; w < words; ++w) {
      for (; seen[w] && found < k; seen[w] &= seen[w] - 1) out[found++] = w * 64 + __builtin_ctzll(seen[w]);
      seen[w] = 0;
    }
    return found;
  }
  for (int64_t i = 0; i < count; i += W) {  // every index's place is the number of lower ones
    IVec<T> lower{};
    const IVec<T> mine = load_int<T>(index + i);
    for (int64_t j = 0; j < count; ++j) lower = select(lt(all_int<T>(index[j]), mine), lower + 1, lower);
    store_int<T>(ranks + i, lower);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (ranks[i] < k) out[ranks[i]] = index[i];
  }
  return count < k ? count : k;
}

// The same as `ball_query` for the sorted queries from place `first` on; results go to the queries' own places.
template <typename T>
void ball_sorted(const void* query_layout, int64_t first, int64_t number, const void* support_layout, T limit, int64_t k,
                 void* scratch, int64_t* idx) {
  constexpr int W = Lanes<T>::W;
  const Layout<T>&queries = *static_cast<const Layout<T>*>(query_layout), &support = *static_cast<const Layout<T>*>(support_layout);
  const int64_t slots = padded(support.count) + kBucket, words = (support.count + 63) / 64;
  Pieces pieces{static_cast<char*>(scratch)};
  Int<T> *hits = pieces.take<Int<T>>(slots), *ranks = pieces.take<Int<T>>(slots);
  uint64_t* seen = pieces.take<uint64_t>(words);
  int32_t *supers = pieces.take<int32_t>(slots), *buckets = pieces.take<int32_t>(slots);
  __builtin_memset(seen, 0, words * sizeof(uint64_t));
  for (int64_t q = first; q < first + number; ++q) {
    int64_t* out = idx + int64_t(queries.index[q]) * k;
    if (q >= queries.live || !(limit < __builtin_inf())) {
      scan_ball(queries.points + 3 * int64_t(queries.index[q]), support.soa, support.count, limit, k, out);
      continue;
    }
    const Probe<T> probe(queries.x[q], queries.y[q], queries.z[q]);
    const int64_t near = list_buckets(support, GridProbe(queries.grid, queries.spot, queries.spot, q, limit), supers, buckets);
    // About 6 points of a bucket touched are hits, so a scan meets k of them within count * k / (6 * near) points.
    if (near * near * (6 * kBucket) > support.count * k) {
      scan_ball(queries.points + 3 * int64_t(queries.index[q]), support.soa, support.count, limit, k, out);
      continue;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < near; ++i) {
      const int64_t from = int64_t(buckets[i]) * kBucket;
      for (int64_t at = from; at < from + kBucket; at += W) {
        found += append_values<T>(lt(probe.to(support, at), all<T>(limit)), load_int<T>(support.index + at), hits + found);
      }
    }
    fill_row(out, write_lowest<T>(hits, found, k, ranks, seen, words, out), k);
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
