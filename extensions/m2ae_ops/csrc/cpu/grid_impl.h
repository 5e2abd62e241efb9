// Which boxes a search must look at, told on a coarse grid of integers.
//
// Points of a pair of clouds are rounded down to whole cells of one grid, whose side is the larger extent of both. A gap between
// two boxes of cells exceeds the true one, counted in cells, by less than 1.01 along each axis and by less than 1.8 in all; a reach
// of 3 cells more than the distance therefore leaves nothing out, and a search that skips what it does not reach stays exact to
// the bit. 16-bit arithmetic takes half the operations that the same test takes on the coordinates themselves.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int32_t kGridSide = 1 << 13;           // so that the squares of three gaps add up to less than 2^31
constexpr int32_t kNowhere = 2 * kGridSide - 1;   // a cell out of the reach of all
// More than the squared gap of any two cells, less than that to a cell out of reach; a float holds it.
constexpr float kFarthest = 201300000;
static_assert(3LL * (kGridSide - 1) * (kGridSide - 1) < kFarthest && kFarthest < 3LL * kGridSide * kGridSide);
constexpr int64_t kGridLanes = Lanes<float>::W;

// Cells: x in the lower half of a word and y in the upper one, z in a word of its own. Arrays are padded to whole buckets.
struct GridPoints {
  int32_t *xy, *z;
};

struct GridBoxes {
  GridPoints low, high;
};

// Cells for a unit of length; 0 puts all points into one cell.
template <typename T>
struct Grid {
  T lowest[3], factor;
};

inline void put_nowhere(const GridPoints& points, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) points.xy[i] = kNowhere << 16 | kNowhere, points.z[i] = kNowhere;
}

// Rounds `count` finite points to their cells.
template <typename T>
inline void find_spots(const Grid<T>& grid, const T* x, const T* y, const T* z, int64_t count, const GridPoints& out) {
  const T left = grid.lowest[0], front = grid.lowest[1], bottom = grid.lowest[2], factor = grid.factor;
  int32_t *xy = out.xy, *up = out.z;
  if (factor == 0) {  // the cloud may be too large for its differences
    for (int64_t i = 0; i < count; ++i) xy[i] = up[i] = 0;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      xy[i] = int32_t((x[i] - left) * factor) | int32_t((y[i] - front) * factor) << 16;
      up[i] = int32_t((z[i] - bottom) * factor);
    }
  }
  put_nowhere(out, count, padded(count));
}

typedef int16_t Halves __attribute__((vector_size(16)));

// The smallest (or largest) of each half of 16 words.
template <bool most>
inline int32_t extreme_halves(const int32_t* words) {
  const auto better = [](Halves a, Halves b) { return most ? (a > b ? a : b) : (a < b ? a : b); };
  Halves v[4];
  __builtin_memcpy(v, words, sizeof(v));
  Halves best = better(better(v[0], v[1]), better(v[2], v[3]));
  best = better(best, shuffled(best, Halves{4, 5, 6, 7, 0, 1, 2, 3}));
  best = better(best, shuffled(best, Halves{2, 3, 0, 1, 6, 7, 4, 5}));
  int32_t word;
  __builtin_memcpy(&word, &best, sizeof(word));
  return word;
}

// Boxes around runs of 16 of `count` boxes (for points both ends are the same arrays), padded with boxes out of reach.
inline void make_boxes(const GridBoxes& of, int64_t count, const GridBoxes& out) {
  // The last one stands in for the padding meanwhile.
  const int64_t slots = padded(count), boxes = slots / kBucket, last = count - 1;
  const GridPoints ends[2] = {of.low, of.high};
  for (const GridPoints& end : ends) {
    for (int64_t i = count; i < slots; ++i) end.xy[i] = end.xy[last], end.z[i] = end.z[last];
  }
  for (int64_t b = 0; b < boxes; ++b) {
    const int64_t from = b * kBucket;
    out.low.xy[b] = extreme_halves<false>(of.low.xy + from), out.low.z[b] = extreme_halves<false>(of.low.z + from);
    out.high.xy[b] = extreme_halves<true>(of.high.xy + from), out.high.z[b] = extreme_halves<true>(of.high.z + from);
  }
  put_nowhere(of.low, count, slots), put_nowhere(of.high, count, slots);
  put_nowhere(out.low, boxes, padded(boxes)), put_nowhere(out.high, boxes, padded(boxes));
}

// A box of queries, and how far they look.
class GridProbe {
 public:
  // The box from place `at` of `low` to place `at` of `high`, and the squared distance `bound`, which is finite.
  template <typename T>
  GridProbe(const Grid<T>& grid, const GridPoints& low, const GridPoints& high, int64_t at, T bound)
      : low_xy_(all_int<float>(low.xy[at])), low_z_(all_int<float>(low.z[at])),
        high_xy_(all_int<float>(high.xy[at])), high_z_(all_int<float>(high.z[at])) {
    // (s + 3)^2 <= s^2 + s^2 / 64 + 585, without waiting for a root; the rest is for rounding.
    const float squared = float(bound * (grid.factor * grid.factor)) * (1.001f + 1.0f / 64) + 586;
    beyond_ = __builtin_convertvector(smaller(all<float>(squared), all<float>(kFarthest)), IVec<float>);
  }

  Mask<float> reaches(const GridPoints& points, int64_t at) const {
    const IVec<float> xy = load_int<float>(points.xy + at), z = load_int<float>(points.z + at);
    return reaches(xy, z, xy, z);
  }

  Mask<float> reaches(const GridBoxes& boxes, int64_t at) const {
    return reaches(load_int<float>(boxes.low.xy + at), load_int<float>(boxes.low.z + at),
                   load_int<float>(boxes.high.xy + at), load_int<float>(boxes.high.z + at));
  }

 private:
  Mask<float> reaches(IVec<float> low_xy, IVec<float> low_z, IVec<float> high_xy, IVec<float> high_z) const {
    // Along an axis at most one of two boxes begins behind the other's end.
    const IVec<float> xy = excess_halves(low_xy_, high_xy) | excess_halves(low_xy, high_xy_);
    const IVec<float> z = excess_halves(low_z_, high_z) | excess_halves(low_z, high_z_);
    return lt(square_halves(xy) + square_halves(z), beyond_);
  }

  IVec<float> low_xy_, low_z_, high_xy_, high_z_, beyond_;
};

}  // namespace
}  // namespace m2ae::M2AE_ISA
