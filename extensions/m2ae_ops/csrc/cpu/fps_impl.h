// Farthest point sampling of one cloud, exact.
//
// The points that may be chosen are sorted along a Z-order curve into buckets of 16, each with its bounding box, the largest
// running distance inside and who has it. A new sample changes a bucket only if the box comes closer to it than that
// largest distance; the bound is computed with the operations of the distance itself, and rounding is monotone, so no
// bucket is left out that would have changed. Ties: every point has a rank (its place in the order of preference), the lowest
// rank among the farthest wins.
#pragma once

#include <cstring>

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int kDigitBits = 9;  // the Z-order key has two digits, 6 bits an axis
constexpr int kDigits = 1 << kDigitBits;
constexpr int64_t kSortFromSamples = 16;  // with fewer samples sorting costs more than it saves

// Hands out aligned pieces of the scratch memory.
struct Arena {
  char* next;
  template <typename U>
  U* take(size_t count) {
    U* piece = reinterpret_cast<U*>(next);
    next += (count * sizeof(U) + 63) / 64 * 64;
    return piece;
  }
};

inline uint32_t spread(uint32_t v) {  // abcdef -> a00b00c00d00e00f
  v = (v | (v << 8)) & 0x0300F;
  v = (v | (v << 4)) & 0x030C3;
  return (v | (v << 2)) & 0x09249;
}

template <typename T>
struct FpsCloud {
  using I = Int<T>;
  static constexpr int W = Lanes<T>::W;
  const T* points;
  const int32_t* order;
  int64_t live, buckets, bucket_slots;
  T *x, *y, *z, *running;                          // per point, sorted, padded
  I* rank;                                         // per point
  T *low[3], *high[3], *bucket_best;               // per bucket
  I* bucket_rank;
  int32_t* changing;                               // buckets that the current sample may change

  int64_t index_of(int64_t r) const { return order ? order[r] : r; }

  void prepare(const T* pts, int64_t count, int64_t samples, const FpsRules& rules, void* scratch) {
    points = pts;
    order = rules.order;
    Arena arena{static_cast<char*>(scratch)};
    const int64_t slots = padded(count);
    uint32_t* ranks = arena.take<uint32_t>(slots);
    uint32_t* spare = arena.take<uint32_t>(slots);
    uint32_t* keys = arena.take<uint32_t>(slots);
    uint32_t* histogram = arena.take<uint32_t>(2 * kDigits);
    collect_live(count, rules.skip_near_origin, ranks);
    if (samples >= kSortFromSamples && live > 4 * kBucket) sort_along_curve(ranks, spare, keys, histogram);
    x = arena.take<T>(slots), y = arena.take<T>(slots), z = arena.take<T>(slots), running = arena.take<T>(slots);
    rank = arena.take<I>(slots);
    if (live == 0) return;
    buckets = padded(live) / kBucket;
    bucket_slots = padded(buckets);
    for (int c = 0; c < 3; ++c) low[c] = arena.take<T>(bucket_slots), high[c] = arena.take<T>(bucket_slots);
    bucket_best = arena.take<T>(bucket_slots);
    bucket_rank = arena.take<I>(bucket_slots);
    changing = arena.take<int32_t>(bucket_slots + W);
    lay_out(ranks);
    make_boxes();
  }

  void collect_live(int64_t count, bool skip_near_origin, uint32_t* ranks) {
    live = 0;
    for (int64_t r = 0; r < count; ++r) {
      const T* p = points + 3 * index_of(r);
      // The difference of a value with itself is 0 unless it is NaN or infinite.
      const bool finite = (p[0] - p[0] == 0) & (p[1] - p[1] == 0) & (p[2] - p[2] == 0);
      const bool near = skip_near_origin && (p[0] * p[0] + p[1] * p[1]) + p[2] * p[2] <= T(1e-3);
      ranks[live] = uint32_t(r);
      live += finite & !near;
    }
  }

  void sort_along_curve(uint32_t* ranks, uint32_t* spare, uint32_t* keys, uint32_t* histogram) {
    T lowest[3], highest[3];
    const T* first = points + 3 * index_of(ranks[0]);
    for (int c = 0; c < 3; ++c) lowest[c] = highest[c] = first[c];
    for (int64_t i = 0; i < live; ++i) {
      const T* p = points + 3 * index_of(ranks[i]);
      for (int c = 0; c < 3; ++c) {
        lowest[c] = p[c] < lowest[c] ? p[c] : lowest[c];
        highest[c] = p[c] > highest[c] ? p[c] : highest[c];
      }
    }
    T extent = 0;
    for (int c = 0; c < 3; ++c) extent = highest[c] - lowest[c] > extent ? highest[c] - lowest[c] : extent;
    // The layout is only a matter of speed; a cloud too large or too small to be scaled stays in its order.
    const T factor = extent > 0 && extent < T(1e30) ? T(63.999) / extent : T(0);
    if (!(factor > 0 && factor < T(1e30))) return;
    memset(histogram, 0, 2 * kDigits * sizeof(uint32_t));
    for (int64_t i = 0; i < live; ++i) {
      const T* p = points + 3 * index_of(ranks[i]);
      uint32_t key = 0;
      for (int c = 0; c < 3; ++c) key |= spread(uint32_t((p[c] - lowest[c]) * factor) & 63) << c;
      keys[ranks[i]] = key;
      ++histogram[key % kDigits];
      ++histogram[kDigits + (key >> kDigitBits)];
    }
    uint32_t sums[2] = {0, 0};
    for (int d = 0; d < kDigits; ++d) {
      for (int pass = 0; pass < 2; ++pass) {
        const uint32_t here = histogram[pass * kDigits + d];
        histogram[pass * kDigits + d] = sums[pass];
        sums[pass] += here;
      }
    }
    for (int64_t i = 0; i < live; ++i) spare[histogram[keys[ranks[i]] % kDigits]++] = ranks[i];
    for (int64_t i = 0; i < live; ++i) ranks[histogram[kDigits + (keys[spare[i]] >> kDigitBits)]++] = spare[i];
  }

  void lay_out(const uint32_t* ranks) {
    for (int64_t i = 0; i < padded(live); ++i) {
      const bool real = i < live;
      const uint32_t r = ranks[real ? i : live - 1];
      const T* p = points + 3 * index_of(r);
      x[i] = p[0], y[i] = p[1], z[i] = p[2];
      running[i] = real ? T(1e10) : T(-1);  // below every distance: never chosen, never updated
      rank[i] = I(r);
    }
  }

  void make_boxes() {
    for (int64_t b = 0; b < bucket_slots; ++b) {
      bucket_best[b] = b < buckets ? T(1e10) : T(-1);
      const int64_t from = (b < buckets ? b : buckets - 1) * kBucket;
      const T* coordinates[3] = {x + from, y + from, z + from};
      for (int c = 0; c < 3; ++c) {
        T lowest = coordinates[c][0], highest = coordinates[c][0];
        for (int i = 1; i < kBucket; ++i) {
          lowest = coordinates[c][i] < lowest ? coordinates[c][i] : lowest;
          highest = coordinates[c][i] > highest ? coordinates[c][i] : highest;
        }
        low[c][b] = lowest, high[c][b] = highest;
      }
      I best = rank[from];
      for (int i = 1; i < kBucket; ++i) best = rank[from + i] < best ? rank[from + i] : best;
      bucket_rank[b] = best;
    }
  }

  // Largest distance and rank as one integer: larger is farther, and of equally far points the one with the lower rank.
  static Key<T> priority(T sqdist, I r) { return make_key(sqdist, 0x7FFFFFFF - int64_t(r)); }

  // Takes the new sample into account inside one bucket and returns the priority of its farthest point.
  inline Key<T> update(int64_t bucket, Vec<T> qx, Vec<T> qy, Vec<T> qz) {
    constexpr int U = kBucket / W;
    const int64_t from = bucket * kBucket;
    Vec<T> now[U], most;
    for (int u = 0; u < U; ++u) {
      const int64_t at = from + u * W;
      const Vec<T> d = squared_distance(load(x + at) - qx, load(y + at) - qy, load(z + at) - qz);
      const Vec<T> before = load(running + at);
      now[u] = smaller(d, before);
      store(running + at, now[u]);
      most = u ? larger(now[u], most) : now[0];
    }
    const T top = largest(most);
    uint32_t who = 0;
    for (int u = 0; u < U; ++u) who |= bits(eq(now[u], all<T>(top))) << (u * W);
    I top_rank = rank[from + __builtin_ctz(who)];
    while (who &= who - 1) {
      const I other = rank[from + __builtin_ctz(who)];
      top_rank = other < top_rank ? other : top_rank;
    }
    bucket_best[bucket] = top;
    bucket_rank[bucket] = top_rank;
    return priority(top, top_rank);
  }

  // Adds the sample `last` and returns the index of the next one.
  inline int64_t step(int64_t last) {
    if (live == 0) return 0;
    const T* q = points + 3 * last;
    const Vec<T> qx = all<T>(q[0]), qy = all<T>(q[1]), qz = all<T>(q[2]), zero{};
    Vec<T> most = all<T>(-2);  // of the buckets that stay as they are
    IVec<T> most_rank{};
    int64_t changes = 0;
    for (int64_t v = 0; v < bucket_slots; v += W) {
      const Vec<T> dx = larger(larger(load(low[0] + v) - qx, qx - load(high[0] + v)), zero);
      const Vec<T> dy = larger(larger(load(low[1] + v) - qy, qy - load(high[1] + v)), zero);
      const Vec<T> dz = larger(larger(load(low[2] + v) - qz, qz - load(high[2] + v)), zero);
      const Vec<T> has = load(bucket_best + v);
      const IVec<T> who = load_int<T>(bucket_rank + v);
      const Mask<T> change = lt(squared_distance(dx, dy, dz), has);
      const Mask<T> better = ~change & (lt(most, has) | (eq(has, most) & lt(who, most_rank)));
      most = select(better, has, most);
      most_rank = select(better, who, most_rank);
      changes += append_lanes<T>(change, int32_t(v), changing + changes);
    }
    Key<T> best = 0;
    for (int64_t i = 0; i < changes; ++i) {
      const Key<T> key = update(changing[i], qx, qy, qz);
      best = key > best ? key : best;
    }
    const T top = largest(most);
    if (top >= 0) {
      for (uint32_t who = bits(eq(most, all<T>(top))); who; who &= who - 1) {
        const Key<T> key = priority(top, most_rank[__builtin_ctz(who)]);
        best = key > best ? key : best;
      }
    }
    T sqdist;
    int64_t complement;
    split_key(best, sqdist, complement);
    return index_of(0x7FFFFFFF - complement);
  }
};

// Two clouds advance in turn where there are two, so that one computes while the other waits for its chain of operations.
template <typename T>
void fps(const T* points, int64_t clouds, int64_t count, int64_t samples, const FpsRules& rules, void* scratch, int64_t* out) {
  FpsCloud<T> first, second;
  int64_t cloud = 0;
  for (; cloud + 2 <= clouds; cloud += 2, points += 6 * count, out += 2 * samples) {
    first.prepare(points, count, samples, rules, scratch);
    second.prepare(points + 3 * count, count, samples, rules, static_cast<char*>(scratch) + fps_scratch<T>(count));
    int64_t *a = out, *b = out + samples;
    a[0] = b[0] = 0;
    for (int64_t s = 1; s < samples; ++s) {
      a[s] = first.step(a[s - 1]);
      b[s] = second.step(b[s - 1]);
    }
  }
  if (cloud < clouds) {
    first.prepare(points, count, samples, rules, scratch);
    out[0] = 0;
    for (int64_t s = 1; s < samples; ++s) out[s] = first.step(out[s - 1]);
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
