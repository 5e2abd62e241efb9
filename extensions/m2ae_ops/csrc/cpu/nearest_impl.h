// The nearest one or three targets of every query.
//
// Small clouds: queries in lanes, targets broadcast one after the other. Larger ones, laid out in buckets: 16 queries that
// are neighbours themselves share one search for the buckets that may matter to any of them.
#pragma once

#include "buckets_impl.h"
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

// The best of the targets that one query has met, by their place in the bucket: distances and indices.
template <typename T>
struct Nearest {
  static constexpr int W = Lanes<T>::W, U = kBucket / W;
  Vec<T> near[U];
  IVec<T> who[U];

  Nearest(const T* sqdist, const Int<T>* index) {
    for (int u = 0; u < U; ++u) near[u] = load(sqdist + u * W), who[u] = load_int<T>(index + u * W);
  }

  void meet(const Probe<T>& probe, const Layout<T>& targets, int64_t at) {
    for (int u = 0; u < U; ++u) {
      const Vec<T> d = probe.to(targets, at + u * W);
      const IVec<T> me = load_int<T>(targets.index + at + u * W);
      const Mask<T> closer = lt(d, near[u]) | (eq(d, near[u]) & lt(me, who[u]));
      near[u] = select(closer, d, near[u]), who[u] = select(closer, me, who[u]);
    }
  }

  // The smallest distance and the lowest index that has it.
  void result(T* sqdist, int64_t* index) const {
    Vec<T> least = near[0];
    for (int u = 1; u < U; ++u) least = smaller(near[u], least);
    *sqdist = smallest(least);
    alignas(64) Int<T> indices[kBucket];
    uint32_t equal = 0;
    for (int u = 0; u < U; ++u) {
      equal |= bits(eq(near[u], all<T>(*sqdist))) << (u * W);
      store_int<T>(indices + u * W, who[u]);
    }
    Int<T> found = indices[__builtin_ctz(equal)];
    while (equal &= equal - 1) {
      const Int<T> other = indices[__builtin_ctz(equal)];
      found = other < found ? other : found;
    }
    *index = found;
  }
};

// Keeps those buckets that come within `best` of one of 16 queries; a bit in `hits` says of which.
template <typename T>
inline int64_t keep_hits(const Layout<T>& queries, int64_t slot, const T* best, const Layout<T>& targets, int64_t count,
                         int32_t* buckets, Int<T>* hits) {
  constexpr int W = Lanes<T>::W, U = kBucket / W;
  Vec<T> x[U], y[U], z[U], limit[U];
  for (int u = 0; u < U; ++u) {
    x[u] = load(queries.x + slot + u * W), y[u] = load(queries.y + slot + u * W), z[u] = load(queries.z + slot + u * W);
    limit[u] = load(best + u * W);
  }
  const BoundingBoxes<T>& box = targets.box;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t b = buckets[i];
    uint32_t hit = 0;
    for (int u = 0; u < U; ++u) {
      const Vec<T> dx = x[u] - smaller(larger(x[u], all<T>(box.low[0][b])), all<T>(box.high[0][b]));
      const Vec<T> dy = y[u] - smaller(larger(y[u], all<T>(box.low[1][b])), all<T>(box.high[1][b]));
      const Vec<T> dz = z[u] - smaller(larger(z[u], all<T>(box.low[2][b])), all<T>(box.high[2][b]));
      hit |= bits(le(squared_distance(dx, dy, dz), limit[u])) << (u * W);
    }
    buckets[kept] = b, hits[kept] = Int<T>(hit);
    kept += hit != 0;
  }
  for (int64_t i = kept; i < kept + W; ++i) hits[i] = 0;
  return kept;
}

// The same as `nearest` for the sorted queries from place `first` (a multiple of 16) on; results go to the queries' own places.
template <typename T>
void nearest_sorted(const void* query_layout, int64_t first, int64_t number, const void* target_layout, void* scratch, T* sqdist,
                    int64_t* idx) {
  constexpr int W = Lanes<T>::W;
  const Layout<T>&queries = *static_cast<const Layout<T>*>(query_layout), &targets = *static_cast<const Layout<T>*>(target_layout);
  Pieces pieces{static_cast<char*>(scratch)};
  int32_t* supers = pieces.take<int32_t>(padded(targets.supers) + kBucket);
  int32_t* buckets = pieces.take<int32_t>(padded(targets.buckets) + kBucket);
  Int<T>* hits = pieces.take<Int<T>>(padded(targets.buckets) + kBucket);
  alignas(64) T around[kBucket][kBucket];
  alignas(64) T best[kBucket];
  int64_t window[kBucket];
  for (int64_t slot = first; slot < first + number; slot += kBucket) {
    const int64_t end = slot + kBucket < first + number ? slot + kBucket : first + number;
    const int64_t live = targets.live < kBucket ? 0 : (queries.live < end ? queries.live : end) - slot;
    T most = 0;
    for (int i = 0; i < kBucket; ++i) best[i] = 0;
    for (int i = 0; i < live; ++i) {
      const int64_t q = slot + i;
      const Probe<T> probe(queries.x[q], queries.y[q], queries.z[q]);
      window[i] = window_around(targets, queries.key[q], kBucket);
      Vec<T> least = all<T>(__builtin_inf());
      for (int u = 0; u < kBucket; u += W) {
        const Vec<T> d = probe.to(targets, window[i] + u);
        store(around[i] + u, d);
        least = smaller(d, least);
      }
      best[i] = smallest(least);
      most = larger(best[i], most);
    }
    const bool found = live > 0 && most < __builtin_inf();
    if (found) {
      const int64_t near = list_buckets(targets, BoxProbe<T>(queries.box, slot / kBucket), most, supers, buckets);
      const int64_t kept = keep_hits(queries, slot, best, targets, near, buckets, hits);
      for (int i = 0; i < live; ++i) {
        const int64_t q = slot + i, to = queries.index[q];
        const Probe<T> probe(queries.x[q], queries.y[q], queries.z[q]);
        Nearest<T> nearest(around[i], targets.index + window[i]);
        for (int64_t c = 0; c < kept; c += W) {
          uint32_t todo = bits(lt(IVec<T>{}, load_int<T>(hits + c) & all_int<T>(1 << i)));
          for (; todo; todo &= todo - 1) nearest.meet(probe, targets, int64_t(buckets[c + __builtin_ctz(todo)]) * kBucket);
        }
        nearest.result(sqdist + to, idx + to);
      }
    }
    for (int64_t q = found ? slot + live : slot; q < end; ++q) {
      // Nothing finite to find, or a query that is not finite: too rare to be quick.
      const int64_t to = queries.index[q];
      nearest(queries.points + 3 * to, 1, targets.points, targets.count, sqdist + to, idx + to);
    }
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
