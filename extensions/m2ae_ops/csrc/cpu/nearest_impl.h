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

// Targets one after the other against 16 queries in lanes: the R nearest of each, the lowest index first among equals. The quick
// form of R = 1 keeps the first of equals instead, and notes that there were some.
template <typename T, int R, bool kQuick>
struct Contest {
  static_assert(R == 1 || !kQuick);
  static constexpr int W = Lanes<T>::W, U = kBucket / W;
  struct Winners {
    Vec<T> near[R];
    IVec<T> who[R];
    Mask<T> ties;

    void take(Vec<T> d, IVec<T> me) {
      Mask<T> closer[R];
      if constexpr (kQuick) {
        closer[0] = lt(d, near[0]);
        ties = ties | eq(d, near[0]);
      } else {
        for (int r = 0; r < R; ++r) closer[r] = lt(d, near[r]) | (eq(d, near[r]) & lt(me, who[r]));
      }
      for (int r = R - 1; r > 0; --r) {
        near[r] = select(closer[r - 1], near[r - 1], select(closer[r], d, near[r]));
        who[r] = select(closer[r - 1], who[r - 1], select(closer[r], me, who[r]));
      }
      // Not by `closer`: the next target need not wait for it. Where d is NaN, `near` stays.
      near[0] = smaller(d, near[0]), who[0] = select(closer[0], me, who[0]);
    }
  };
  Vec<T> x[U], y[U], z[U];
  Winners winners[U];

  // Lanes without a query, where coordinates are NaN, take no part.
  Contest(const Layout<T>& queries, int64_t slot, int64_t live) {
    T start[kBucket];
    for (int i = 0; i < kBucket; ++i) start[i] = i < live ? T(__builtin_inf()) : T(0);
    for (int u = 0; u < U; ++u) {
      x[u] = load(queries.x + slot + u * W), y[u] = load(queries.y + slot + u * W), z[u] = load(queries.z + slot + u * W);
      for (int r = 0; r < R; ++r) winners[u].near[r] = load(start + u * W), winners[u].who[r] = IVec<T>{};
      winners[u].ties = Mask<T>{};
    }
  }

  // Targets by their places in the layout.
  void meet(const Layout<T>& targets, const int32_t* places, int64_t count) {
    const T *tx = targets.x, *ty = targets.y, *tz = targets.z;
    const Int<T>* index = targets.index;
    for (int u = 0; u < U; ++u) {
      Winners all_so_far = winners[u];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t j = places[i];
        all_so_far.take(squared_distance(x[u] - all<T>(tx[j]), y[u] - all<T>(ty[j]), z[u] - all<T>(tz[j])), all_int<T>(index[j]));
      }
      winners[u] = all_so_far;
    }
  }

  bool tied() const {
    uint32_t some = 0;
    for (int u = 0; u < U; ++u) some |= bits(winners[u].ties);
    return some != 0;
  }

  // A distance that the R nearest of all queries are within.
  T bound() const {
    Vec<T> most = winners[0].near[R - 1];
    for (int u = 1; u < U; ++u) most = larger(winners[u].near[R - 1], most);
    return largest(most);
  }

  void write(const Layout<T>& queries, int64_t slot, int64_t live, T* sqdist, int64_t* idx) const {
    T distances[R][kBucket];
    Int<T> indices[R][kBucket];
    for (int r = 0; r < R; ++r) {
      for (int u = 0; u < U; ++u) {
        store(distances[r] + u * W, winners[u].near[r]);
        store_int<T>(indices[r] + u * W, winners[u].who[r]);
      }
    }
    const Int<T>* places = queries.index + slot;
    const auto put = [&](int64_t i) {
      const int64_t to = int64_t(places[i]) * R;
      for (int r = 0; r < R; ++r) sqdist[to + r] = distances[r][i], idx[to + r] = indices[r][i];
    };
    if (live == kBucket) {  // nearly always; a known number takes half the time
#pragma GCC unroll 16
      for (int i = 0; i < kBucket; ++i) put(i);
      return;
    }
    for (int64_t i = 0; i < live; ++i) put(i);
  }
};

// Notes the places of the points within reach of a box of queries, out of all listed buckets but `skip` from `skipped` on.
template <typename T>
inline int64_t pick_points(const Layout<T>& from, const GridProbe& probe, const int32_t* buckets, int64_t count, int64_t skipped,
                           int64_t skip, int32_t* to) {
  int64_t picked = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (uint64_t(buckets[i] - skipped) < uint64_t(skip)) continue;
    const int64_t first = int64_t(buckets[i]) * kBucket;
    for (int64_t at = first; at < first + kBucket; at += kGridLanes) {
      picked += append_lanes<float>(probe.reaches(from.spot, at), int32_t(at), to + picked);
    }
  }
  return picked;
}

// Lists of places among the targets, long enough for all of them.
struct Lists {
  int32_t *supers, *buckets, *picked;
};

constexpr int64_t kHome = 3;  // buckets that every search begins with

// Finds the R nearest for the sorted queries from `slot` on, at most 16; false where it cannot. The quick form cannot either
// where it met equal distances.
template <typename T, int R, bool kQuick>
inline bool search_together(const Layout<T>& queries, int64_t slot, int64_t live, const Layout<T>& targets, const Lists& lists,
                            T* sqdist, int64_t* idx) {
  if (live <= 0 || targets.buckets < 2) return false;
  Contest<T, R, kQuick> contest(queries, slot, live);
  // The buckets around the middle of the queries first: they bound the distance to look at.
  const int64_t size = targets.buckets < kHome ? targets.buckets : kHome, last = targets.buckets - size;
  const int64_t around = window_around(targets, queries.key[slot + live / 2], (size - 1) * kBucket) / kBucket;
  const int64_t home = around < last ? around : last;
  for (int64_t i = 0; i < size * kBucket; ++i) lists.picked[i] = int32_t(home * kBucket + i);
  contest.meet(targets, lists.picked, size * kBucket);
  const T bound = contest.bound();
  if (!(bound < __builtin_inf())) return false;
  const GridProbe probe(queries.grid, queries.box.low, queries.box.high, slot / kBucket, bound);
  const int64_t near = list_buckets(targets, probe, lists.supers, lists.buckets);
  const int64_t count = pick_points(targets, probe, lists.buckets, near, home, size, lists.picked);
  contest.meet(targets, lists.picked, count);
  if (kQuick && contest.tied()) return false;
  contest.write(queries, slot, live, sqdist, idx);
  return true;
}

// The same as `nearest` (R = 1) or `three_nn` (R = 3) for the sorted queries from place `first` (a multiple of 16) on; results go
// to the queries' own places.
template <typename T, int R>
void nearest_sorted(const void* query_layout, int64_t first, int64_t number, const void* target_layout, void* scratch, T* sqdist,
                    int64_t* idx) {
  const Layout<T>&queries = *static_cast<const Layout<T>*>(query_layout), &targets = *static_cast<const Layout<T>*>(target_layout);
  const int64_t slots = padded(targets.count) + kBucket;
  Pieces pieces{static_cast<char*>(scratch)};
  const Lists lists{pieces.take<int32_t>(slots), pieces.take<int32_t>(slots), pieces.take<int32_t>(slots)};
  bool quick = R == 1;  // until it fails, as where one point has equally near ones, others have them too
  for (int64_t slot = first; slot < first + number; slot += kBucket) {
    const int64_t end = slot + kBucket < first + number ? slot + kBucket : first + number;
    const int64_t live = (queries.live < end ? queries.live : end) - slot;
    quick = quick && search_together<T, R, R == 1>(queries, slot, live, targets, lists, sqdist, idx);
    const bool done = quick || search_together<T, R, false>(queries, slot, live, targets, lists, sqdist, idx);
    for (int64_t q = done ? slot + live : slot; q < end; ++q) {
      // Nothing finite to find, or a query that is not finite: too rare to be quick.
      const int64_t to = queries.index[q];
      const auto all_targets = R == 1 ? nearest<T> : three_nn<T>;
      all_targets(queries.points + 3 * to, 1, targets.points, targets.count, sqdist + to * R, idx + to * R);
    }
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
