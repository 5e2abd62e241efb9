// The nearest one or three targets of every query: queries in lanes, targets broadcast one after the other.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int kQueryVectors = 2;  // registers of queries worked on together, to share the broadcasts

// Coordinates of a block of queries in lanes; the last query fills an incomplete block.
template <typename T, int U>
struct QueryBlock {
  static constexpr int W = Lanes<T>::W;
  Vec<T> x[U], y[U], z[U];
  QueryBlock(const T* query, int64_t from, int64_t queries) {
    T buffer[3][U * W];
    for (int i = 0; i < U * W; ++i) {
      const int64_t q = from + i < queries ? from + i : queries - 1;
      for (int c = 0; c < 3; ++c) buffer[c][i] = query[3 * q + c];
    }
    for (int u = 0; u < U; ++u) x[u] = load(buffer[0] + u * W), y[u] = load(buffer[1] + u * W), z[u] = load(buffer[2] + u * W);
  }
};

template <typename T, int U>
void nearest_block(const T* query, int64_t from, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx) {
  constexpr int W = Lanes<T>::W;
  const QueryBlock<T, U> q(query, from, queries);
  Vec<T> best[U];
  IVec<T> who[U];
  for (int u = 0; u < U; ++u) best[u] = all<T>(__builtin_inf()), who[u] = IVec<T>{};
  for (int64_t j = 0; j < count; ++j) {
    const Vec<T> tx = all<T>(target[3 * j]), ty = all<T>(target[3 * j + 1]), tz = all<T>(target[3 * j + 2]);
    const IVec<T> me = all_int<T>(Int<T>(j));
    for (int u = 0; u < U; ++u) {
      const Vec<T> d = squared_distance(q.x[u] - tx, q.y[u] - ty, q.z[u] - tz);
      const Mask<T> closer = lt(d, best[u]);  // strict: the first of equals stays; NaN never wins
      best[u] = select(closer, d, best[u]);
      who[u] = select(closer, me, who[u]);
    }
  }
  for (int u = 0; u < U; ++u) {
    for (int i = 0; i < W && from + u * W + i < queries; ++i) {
      sqdist[from + u * W + i] = best[u][i];
      idx[from + u * W + i] = who[u][i];
    }
  }
}

template <typename T>
void nearest(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx) {
  constexpr int W = Lanes<T>::W;
  int64_t from = 0;
  for (; from + W < queries; from += kQueryVectors * W) {
    nearest_block<T, kQueryVectors>(query, from, queries, target, count, sqdist, idx);
  }
  if (from < queries) nearest_block<T, 1>(query, from, queries, target, count, sqdist, idx);
}

template <typename T>
constexpr uint32_t kAllLanes = (1u << Lanes<T>::W) - 1;

template <typename T>
void three_nn(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx) {
  constexpr int W = Lanes<T>::W;
  const int64_t three = count < 3 ? count : 3;
  const Vec<T> far = all<T>(__builtin_inf());
  for (int64_t from = 0; from < queries; from += W) {
    const QueryBlock<T, 1> q(query, from, queries);
    Vec<T> best[3];
    IVec<T> who[3];
    // NaN stands for "nobody yet": everything compares as closer, infinity included, as in a stable sort of all targets.
    for (int r = 0; r < 3; ++r) best[r] = all<T>(__builtin_nan("")), who[r] = IVec<T>{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> raw = squared_distance(q.x[0] - target[3 * j], q.y[0] - target[3 * j + 1], q.z[0] - target[3 * j + 2]);
      const Vec<T> d = smaller(raw, far);  // NaN becomes infinity
      const Mask<T> out3 = le(best[2], d);
      if (bits(out3) == kAllLanes<T>) continue;
      const Mask<T> out2 = le(best[1], d), out1 = le(best[0], d);
      const IVec<T> me = all_int<T>(Int<T>(j));
      best[2] = select(out2, select(out3, best[2], d), best[1]), who[2] = select(out2, select(out3, who[2], me), who[1]);
      best[1] = select(out1, select(out2, best[1], d), best[0]), who[1] = select(out1, select(out2, who[1], me), who[0]);
      best[0] = select(out1, best[0], d), who[0] = select(out1, who[0], me);
    }
    for (int i = 0; i < W && from + i < queries; ++i) {
      for (int r = 0; r < 3; ++r) {
        // With fewer than three targets the nearest one fills the gap, infinitely far.
        sqdist[3 * (from + i) + r] = r < three ? best[r][i] : T(__builtin_inf());
        idx[3 * (from + i) + r] = r < three ? who[r][i] : who[0][i];
      }
    }
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
