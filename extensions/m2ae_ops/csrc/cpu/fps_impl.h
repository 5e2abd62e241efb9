// Farthest point sampling of one cloud, exact.
//
// The points that may be chosen are laid out in leaves of kLeaf points (kd_impl.h), each with its bounding box and the largest
// running distance inside. A new sample changes a leaf only if the box comes closer to it than that distance; the bound is
// computed with the operations of the distance itself, and rounding is monotone, so no leaf is left out that would have
// changed. Leaves come in groups of kGroup, and where there are many groups these have boxes as well. Ties: the lowest rank
// among the farthest wins.
#pragma once

#include "kd_impl.h"
#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int64_t kSortFromSamples = 48;  // with fewer samples sorting costs more than it saves
constexpr int64_t kManyGroups = 9;        // from here on groups are looked at before their leaves

// Points of a leaf with their running squared distances.
template <typename T>
struct Leaf {
  T x[kLeaf], y[kLeaf], z[kLeaf], running[kLeaf];
};

// Boxes around the leaves of a group, or around groups.
template <typename T>
struct Boxes {
  T low[3][kGroup], high[3][kGroup];
  T best[kGroup];     // largest running distance inside
  Int<T> id[kGroup];  // leaf that has it
};

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

template <typename T>
struct Query {
  T x, y, z;
};

template <typename T>
struct Candidate {
  Vec<T> most;
  IVec<T> who;
};

// Distance from `q` to the interval.
template <typename T>
inline Vec<T> outside(T q, const T* low, const T* high) {
  return q - smaller(larger(all<T>(q), load(low)), load(high));
}

// Appends to `list` which boxes the sample may change, from number `first` on, and returns how many they are; the
// farthest points of the others are candidates for the next sample.
template <typename T>
inline int64_t scan(const Boxes<T>& b, Query<T> q, int32_t first, int32_t* list, Candidate<T>& candidate) {
  int64_t found = 0;
  for (int v = 0; v < kGroup; v += Lanes<T>::W) {
    const Vec<T> away = squared_distance(outside(q.x, b.low[0] + v, b.high[0] + v), outside(q.y, b.low[1] + v, b.high[1] + v),
                                         outside(q.z, b.low[2] + v, b.high[2] + v));
    const Vec<T> has = load(b.best + v);
    const Mask<T> change = lt(away, has), better = ~change & lt(candidate.most, has);
    candidate.most = select(better, has, candidate.most);
    candidate.who = select(better, load_int<T>(b.id + v), candidate.who);
    found += append_lanes<T>(change, first + v, list + found);
  }
  return found;
}

// Takes the sample into account inside a leaf and returns the largest running distance.
template <typename T>
inline T update(Leaf<T>& leaf, Query<T> q) {
  Vec<T> most;
  for (int v = 0; v < kLeaf; v += Lanes<T>::W) {
    const Vec<T> sqdist = squared_distance(load(leaf.x + v) - q.x, load(leaf.y + v) - q.y, load(leaf.z + v) - q.z);
    const Vec<T> now = smaller(sqdist, load(leaf.running + v));
    store(leaf.running + v, now);
    most = v ? larger(now, most) : now;
  }
  return largest(most);
}

// One bit for every value equal to `wanted`.
template <int count, typename T>
inline uint32_t matches(const T* values, T wanted) {
  uint32_t out = 0;
  for (int v = 0; v < count; v += Lanes<T>::W) out |= bits(eq(load(values + v), all<T>(wanted))) << v;
  return out;
}

template <typename T>
inline void split_axes(const T* __restrict points, int64_t count, T* __restrict x, T* __restrict y, T* __restrict z) {
  for (int64_t i = 0; i < count; ++i) x[i] = points[3 * i], y[i] = points[3 * i + 1], z[i] = points[3 * i + 2];
}

template <typename T>
struct FpsCloud {
  static constexpr int W = Lanes<T>::W;
  const T* points;
  const int32_t* rank;
  int64_t live, leaves, groups;
  T *x, *y, *z;
  int32_t* index;       // of the points in the leaves
  Leaf<T>* leaf;
  Boxes<T>*group, *upper;  // around the leaves, and around the groups where there are many
  int32_t* touched;     // groups that the current sample may change
  int64_t touches;
  Query<T> q;           // the current sample
  Key<T> best;          // largest distance so far and its leaf
  bool tied;            // several points have been farthest at some step

  void prepare(const T* pts, int64_t count, int64_t samples, const FpsRules& rules, void* scratch) {
    points = pts;
    rank = rules.rank;
    Arena arena{static_cast<char*>(scratch)};
    const int64_t slots = (count + kLeaf - 1) / kLeaf * kLeaf;
    index = arena.take<int32_t>(slots + 16);
    KdItems items{arena.take<int32_t>(slots + 16), index, arena.take<int32_t>(slots + 16), arena.take<int32_t>(slots + 16)};
    x = arena.take<T>(slots), y = arena.take<T>(slots), z = arena.take<T>(slots);
    collect_live(count, rules.skip_near_origin);
    leaves = (live + kLeaf - 1) / kLeaf;
    groups = (leaves + kGroup - 1) / kGroup;
    if (samples >= kSortFromSamples && leaves > 2 && make_keys(items.key)) kd_order(items, live);
    leaf = arena.take<Leaf<T>>(leaves);
    group = arena.take<Boxes<T>>(groups);
    upper = arena.take<Boxes<T>>((groups + kGroup - 1) / kGroup);
    touched = arena.take<int32_t>((groups + kGroup - 1) / kGroup * kGroup + W);
    touches = 0;
    best = 0;
    tied = false;
    lay_out();
    const bool finite = (pts[0] - pts[0] == 0) & (pts[1] - pts[1] == 0) & (pts[2] - pts[2] == 0);
    const T far = __builtin_inf();  // changes nothing
    q = finite ? Query<T>{pts[0], pts[1], pts[2]} : Query<T>{far, far, far};
  }

  // Fills x, y, z and index with the points that may be chosen.
  void collect_live(int64_t count, bool skip_near_origin) {
    const T nearest = skip_near_origin ? T(1e-3) : T(-1);
    split_axes(points, count, x, y, z);
    for (int64_t i = 0; i < count; ++i) index[i] = int32_t(i);
    live = count;
    if (count >= W && all_eligible(nearest)) return;
    live = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T a = x[i], b = y[i], c = z[i];
      x[live] = a, y[live] = b, z[live] = c;
      index[live] = int32_t(i);
      live += eligible(a, b, c, nearest);
    }
  }

  // The difference of a value with itself is 0 unless it is NaN or infinite.
  static inline bool eligible(T a, T b, T c, T nearest) {
    return ((a * a + b * b) + c * c > nearest) & (((a - a) + (b - b)) + (c - c) == 0);
  }

  // The same for the `live` points in x, y and z, of which there is a vector at least.
  inline bool all_eligible(T nearest) const {
    uint32_t fine = ~0u;
    for (int64_t i = 0; i < live; i += W) {
      const int64_t at = i + W <= live ? i : live - W;
      const Vec<T> a = load(x + at), b = load(y + at), c = load(z + at);
      fine &= bits(lt(all<T>(nearest), squared_distance(a, b, c))) & bits(eq(((a - a) + (b - b)) + (c - c), Vec<T>{}));
    }
    return fine == (W == 32 ? ~0u : (1u << W) - 1);
  }

  // Coordinates as the k-d tree wants them; false if the cloud is too large or too small to be scaled.
  bool make_keys(int32_t* key) const {
    const T* coordinates[3] = {x, y, z};
    T lowest[3], extent = 0;
    for (int c = 0; c < 3; ++c) {
      Vec<T> lows = load(coordinates[c]), highs = lows;  // there are more than two leaves of them
      for (int64_t i = W; i < live; i += W) {
        const Vec<T> v = load(coordinates[c] + (i + W <= live ? i : live - W));
        lows = smaller(v, lows), highs = larger(v, highs);
      }
      const T low = -largest(-lows), high = largest(highs);
      lowest[c] = low;
      extent = high - low > extent ? high - low : extent;
    }
    const T factor = extent > 0 && extent < T(1e30) ? T(kField + 0.99) / extent : T(0);
    if (!(factor > 0 && factor < T(1e30))) return false;
    const T ax = lowest[0], ay = lowest[1], az = lowest[2];
    for (int64_t i = 0; i < live; ++i) {
      const int32_t kx = int32_t((x[i] - ax) * factor), ky = int32_t((y[i] - ay) * factor), kz = int32_t((z[i] - az) * factor);
      key[i] = kx | ky << kFieldBits | kz << 2 * kFieldBits;
    }
    return true;
  }

  void lay_out() {
    for (int64_t i = live; i < leaves * kLeaf; ++i) index[i] = index[live - 1];
    for (int64_t l = 0; l < leaves; ++l) {
      const int32_t* from = index + l * kLeaf;
      for (int i = 0; i < kLeaf; ++i) {
        const T* p = points + 3 * int64_t(from[i]);
        leaf[l].x[i] = p[0], leaf[l].y[i] = p[1], leaf[l].z[i] = p[2];
      }
      for (int i = 0; i < kLeaf; ++i) leaf[l].running[i] = T(1e10);
    }
    // Padding stays below every distance: never chosen, never updated.
    for (int64_t i = live; i < leaves * kLeaf; ++i) leaf[leaves - 1].running[i % kLeaf] = -1;
    for (int64_t l = 0; l < groups * kGroup; ++l) surround(group[l / kGroup], l % kGroup, l, l + 1 < leaves ? l + 1 : leaves);
    if (groups < kManyGroups) return;
    for (int64_t g = 0; g < (groups + kGroup - 1) / kGroup * kGroup; ++g) {
      const int64_t end = (g + 1) * kGroup;
      surround(upper[g / kGroup], g % kGroup, g * kGroup, end < leaves ? end : leaves);
    }
  }

  void surround(Boxes<T>& boxes, int64_t at, int64_t from, int64_t to) const {
    boxes.id[at] = Int<T>(from);
    boxes.best[at] = from < to ? T(1e10) : T(-1);
    if (from >= to) {  // never changed nor chosen
      for (int c = 0; c < 3; ++c) boxes.low[c][at] = boxes.high[c][at] = 0;
      return;
    }
    Vec<T> low[3] = {load(leaf[from].x), load(leaf[from].y), load(leaf[from].z)}, high[3] = {low[0], low[1], low[2]};
    for (int64_t l = from; l < to; ++l) {
      for (int v = 0; v < kLeaf; v += W) {
        low[0] = smaller(load(leaf[l].x + v), low[0]), high[0] = larger(load(leaf[l].x + v), high[0]);
        low[1] = smaller(load(leaf[l].y + v), low[1]), high[1] = larger(load(leaf[l].y + v), high[1]);
        low[2] = smaller(load(leaf[l].z + v), low[2]), high[2] = larger(load(leaf[l].z + v), high[2]);
      }
    }
    for (int c = 0; c < 3; ++c) boxes.low[c][at] = -largest(-low[c]), boxes.high[c][at] = largest(high[c]);
  }

  // Lists the leaves that the sample may change, each with `mark` added.
  inline int64_t find_changes(int32_t mark, int32_t* list) {
    Candidate<T> candidate{all<T>(-2), IVec<T>{}};
    int64_t changes = 0;
    if (groups < kManyGroups) {
      for (int64_t g = 0; g < groups; ++g) changes += scan(group[g], q, mark + int32_t(g * kGroup), list + changes, candidate);
    } else {
      touches = 0;
      for (int64_t g = 0; g < groups; g += kGroup) touches += scan(upper[g / kGroup], q, int32_t(g), touched + touches, candidate);
      for (int64_t t = 0; t < touches; ++t) {
        changes += scan(group[touched[t]], q, mark + int32_t(touched[t] * kGroup), list + changes, candidate);
      }
    }
    Int<T> who[W];
    __builtin_memcpy(who, &candidate.who, sizeof(who));
    const T top = largest(candidate.most);
    best = top < 0 ? 0 : make_key(top, who[__builtin_ctz(bits(eq(candidate.most, all<T>(top))))]);
    return changes;
  }

  inline void change(int64_t l) {
    const T most = update(leaf[l], q);
    group[l / kGroup].best[l % kGroup] = most;
    const Key<T> key = make_key(most, l);
    best = key > best ? key : best;
  }

  // The next sample.
  inline int64_t pick() {
    if (live == 0) return 0;
    for (int64_t t = 0; t < touches; ++t) {
      const int64_t g = touched[t];
      Vec<T> most = load(group[g].best);
      for (int v = W; v < kGroup; v += W) most = larger(load(group[g].best + v), most);
      const T top = largest(most);
      upper[g / kGroup].best[g % kGroup] = top;
      upper[g / kGroup].id[g % kGroup] = Int<T>(g * kGroup + __builtin_ctz(matches<kGroup>(group[g].best, top)));
    }
    T top;
    int64_t winner;
    split_key(best, top, winner);
    const uint32_t same = matches<kLeaf>(leaf[winner].running, top);
    int64_t at = __builtin_ctz(same);
    int64_t ties = __builtin_popcount(same);
    if (groups < kManyGroups) {
      for (int64_t g = 0; g < groups; ++g) ties += __builtin_popcount(matches<kGroup>(group[g].best, top));
    } else {
      for (int64_t g = 0; g < groups; g += kGroup) ties += __builtin_popcount(matches<kGroup>(upper[g / kGroup].best, top));
      ties += __builtin_popcount(matches<kGroup>(group[winner / kGroup].best, top)) - 1;
    }
    at += winner * kLeaf;
    if (__builtin_expect(ties > 2, 0)) {
      at = preferred(top);
      tied = true;
    }
    const Leaf<T>& l = leaf[at / kLeaf];
    q = {l.x[at % kLeaf], l.y[at % kLeaf], l.z[at % kLeaf]};
    return index[at];
  }

  // Of the points at distance `top` the one with the lowest rank.
  __attribute__((noinline)) int64_t preferred(T top) const {
    int64_t winner = -1;
    int32_t best_rank = 0;
    for (int64_t l = 0; l < leaves; ++l) {
      if (group[l / kGroup].best[l % kGroup] != top) continue;
      for (uint32_t same = matches<kLeaf>(leaf[l].running, top); same; same &= same - 1) {
        const int64_t at = l * kLeaf + __builtin_ctz(same);
        const int32_t here = rank ? rank[index[at]] : index[at];
        if (winner < 0 || here < best_rank) winner = at, best_rank = here;
      }
    }
    return winner;
  }
};

// Clouds advance in turn, so that one computes while the other waits for its chain of operations, and their leaves are
// updated in one loop, whose end is hard to predict.
template <typename T>
void fps(const T* points, int64_t clouds, int64_t count, int64_t samples, const FpsRules& rules, void* scratch, int64_t* out,
         uint8_t* doubtful) {
  constexpr int kMark = 28;  // where the number of the cloud stands in a list of leaves
  FpsCloud<T> cloud[kFpsTogether];
  int32_t* list = static_cast<int32_t*>(scratch);
  char* rest = static_cast<char*>(scratch) + fps_list<T>(count);
  for (int64_t first = 0; first < clouds; first += kFpsTogether) {
    const int together = clouds - first < kFpsTogether ? int(clouds - first) : kFpsTogether;
    for (int c = 0; c < together; ++c) {
      cloud[c].prepare(points + 3 * count * (first + c), count, samples, rules, rest + c * fps_cloud<T>(count));
      out[(first + c) * samples] = 0;
    }
    for (int64_t s = 1; s < samples; ++s) {
      int64_t changes = 0;
      for (int c = 0; c < together; ++c) changes += cloud[c].find_changes(c << kMark, list + changes);
      for (int64_t i = 0; i < changes; ++i) cloud[list[i] >> kMark].change(list[i] & ((1 << kMark) - 1));
      for (int c = 0; c < together; ++c) out[(first + c) * samples + s] = cloud[c].pick();
      if (doubtful && s < rules.distinct_steps) {
        for (int c = 0; c < together; ++c) doubtful[first + c] |= cloud[c].tied;
      }
    }
    // With no point left at a distance the last samples were repeats.
    for (int c = 0; doubtful && c < together; ++c) doubtful[first + c] |= samples > 1 && cloud[c].best >> 32 == 0;
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
