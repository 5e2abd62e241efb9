// k nearest neighbours and ball query: one query against a cloud in structure-of-arrays form, exact.
//
// Neighbours: one pass computes all squared distances and the minima of at least 2k groups of points. The k-th smallest of
// those minima bounds the k-th smallest distance, so a second pass finds the few points within it, which are then sorted.
#pragma once

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
    for (int g = 0; g < G; ++g) smaller_ones[g] += select(lt(value, vectors[g]), all_int<T>(1), IVec<T>{});
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

template <typename T>
void ball_query(const T* query, int64_t queries, const T* soa, int64_t count, T limit, int64_t k, int64_t* idx) {
  constexpr int W = Lanes<T>::W, U = 16 / W;
  const int64_t stride = padded(count);
  for (int64_t q = 0; q < queries; ++q) {
    const T* p = query + 3 * q;
    const Vec<T> qx = all<T>(p[0]), qy = all<T>(p[1]), qz = all<T>(p[2]), below = all<T>(limit);
    int64_t* out = idx + q * k;
    int64_t found = 0;
    // The padding is NaN and never a hit.
    for (int64_t at = 0; at < stride && found < k; at += 16) {
      uint32_t hits = 0;
      for (int u = 0; u < U; ++u) hits |= bits(lt(distances(soa, stride, at + u * W, qx, qy, qz), below)) << (u * W);
      for (; hits && found < k; hits &= hits - 1) out[found++] = at + __builtin_ctz(hits);
    }
    const int64_t filling = found ? out[0] : 0;
    for (; found < k; ++found) out[found] = filling;
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
