// The spatial layout that the neighbour searches share: a cloud sorted along a Hilbert curve into buckets of 16 points, each
// with its bounding box, and super-boxes around 16 buckets. Boxes stand on a grid of integers (grid_impl.h).
//
// Points with a NaN or infinite coordinate are infinitely far from everything: they stay out of the buckets.
#pragma once

#include "grid_impl.h"
#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

// How fine the curve is (its cells an axis are 2^depth) and how its keys are sorted: by `passes` digits of `bits` each.
struct CurveSort {
  int depth, passes, bits;
};

constexpr int kMostCells = 4096;  // of one digit
constexpr int kTableDepth = 4;    // of the coarsest curve, which has as many cells
constexpr int kIndexBits = 12;    // of a point in a cloud that is sorted along it

inline CurveSort sort_for(int64_t count) {
  if (count <= 1 << kIndexBits) return {kTableDepth, 1, 12};
  if (count <= 32768) return {6, 2, 9};
  return {9, 3, 9};
}

template <typename T>
struct Layout {
  int64_t count, live, buckets, supers;  // points, those with finite coordinates, boxes at both levels
  CurveSort sort;
  Grid<T> grid;
  const T* points;         // as they came
  T* soa;                  // the same, all x, all y, all z, NaN in the padding
  T *x, *y, *z;            // sorted, NaN in the padding
  Int<T>* index;           // of the sorted points; after them the points that are not finite
  uint32_t* key;           // along the curve, sorted
  uint32_t* cell_end;      // where the cells of the key's upper digit end
  GridPoints spot;         // of the sorted points on the grid
  GridBoxes box, super;
};

// Hands out aligned pieces of memory, kPieceGap further apart than they need: arrays of a power of two in size would otherwise
// compete for the same lines of the cache.
struct Pieces {
  char* next;
  template <typename U>
  U* take(size_t count) {
    U* piece = reinterpret_cast<U*>(next);
    next += (count * sizeof(U) + 63) / 64 * 64 + kPieceGap;
    return piece;
  }
};

template <typename T>
inline void place_arrays(Layout<T>& to, int64_t count) {
  Pieces pieces{reinterpret_cast<char*>(&to) + (sizeof(Layout<T>) + 63) / 64 * 64};
  const int64_t slots = padded(count), buckets = padded(slots / kBucket), supers = padded(buckets / kBucket);
  to.soa = pieces.take<T>(3 * slots);
  to.x = pieces.take<T>(slots), to.y = pieces.take<T>(slots), to.z = pieces.take<T>(slots);
  to.index = pieces.take<Int<T>>(slots);
  to.key = pieces.take<uint32_t>(slots);
  to.cell_end = pieces.take<uint32_t>(kMostCells);
  const auto place = [&](int64_t size) { return GridPoints{pieces.take<int32_t>(size), pieces.take<int32_t>(size)}; };
  to.spot = place(slots);
  to.box.low = place(buckets), to.box.high = place(buckets);
  to.super.low = place(supers), to.super.high = place(supers);
}

template <typename T>
inline Mask<T> all_finite(Vec<T> x, Vec<T> y, Vec<T> z) {
  // The difference of a value with itself is 0 unless it is NaN or infinite.
  return eq((x - x) + (y - y) + (z - z), Vec<T>{});
}

// Copies the points to `soa`, counts the finite ones and widens the box around them.
template <typename T>
inline void take_points(Layout<T>& to, const T* points, int64_t count, T* lowest, T* highest) {
  constexpr int W = Lanes<T>::W;
  place_arrays(to, count);
  to.count = count, to.live = 0, to.points = points;
  const int64_t slots = padded(count);
  T *x = to.soa, *y = x + slots, *z = y + slots;
  for (int64_t i = 0; i < count; ++i) x[i] = points[3 * i], y[i] = points[3 * i + 1], z[i] = points[3 * i + 2];
  for (int64_t i = count; i < slots; ++i) x[i] = y[i] = z[i] = __builtin_nan("");
  Vec<T> low[3], high[3];
  for (int c = 0; c < 3; ++c) low[c] = all<T>(lowest[c]), high[c] = all<T>(highest[c]);
  for (int64_t i = 0; i < slots; i += W) {
    const Vec<T> p[3] = {load(x + i), load(y + i), load(z + i)};
    const Mask<T> finite = all_finite<T>(p[0], p[1], p[2]);
    to.live += __builtin_popcount(bits(finite));
    for (int c = 0; c < 3; ++c) {
      low[c] = select(finite, smaller(p[c], low[c]), low[c]);
      high[c] = select(finite, larger(p[c], high[c]), high[c]);
    }
  }
  for (int c = 0; c < 3; ++c) lowest[c] = smallest(low[c]), highest[c] = largest(high[c]);
}

template <typename V>
constexpr V spread_bits(V v) {  // leaves two zeros between the bits of a number below 1024
  v = (v | (v << 16)) & 0x030000FF;
  v = (v | (v << 8)) & 0x0300F00F;
  v = (v | (v << 4)) & 0x030C30C3;
  return (v | (v << 2)) & 0x09249249;
}

// Place along the Hilbert curve of cells with `depth` bits an axis (Skilling 2004, "Programming the Hilbert curve"): from the
// coarsest level down, undo the reflection or exchange of axes that the curve makes in the half a coordinate lies in.
template <typename V>
constexpr V hilbert_key(V a, V b, V c, int depth) {
  for (int level = depth - 1; level > 0; --level) {
    const int below = (1 << level) - 1;
    a ^= -((a >> level) & 1) & below;
    V upper = -((b >> level) & 1);
    V exchange = (a ^ b) & below & ~upper;
    a ^= (upper & below) | exchange, b ^= exchange;
    upper = -((c >> level) & 1);
    exchange = (a ^ c) & below & ~upper;
    a ^= (upper & below) | exchange, c ^= exchange;
  }
  b ^= a, c ^= b;
  V flips{};
  for (int level = depth - 1; level > 0; --level) flips ^= -((c >> level) & 1) & ((1 << level) - 1);
  return (spread_bits(a ^ flips) << 2) | (spread_bits(b ^ flips) << 1) | spread_bits(c ^ flips);
}

// The keys of all cells of the coarsest curve, which are quicker to look up than to work out.
struct KeyTable {
  uint16_t key[1 << 3 * kTableDepth];
  constexpr KeyTable() : key{} {
    constexpr int side = 1 << kTableDepth;
    for (int cell = 0; cell < side * side * side; ++cell) {
      key[cell] = uint16_t(hilbert_key(cell / (side * side), cell / side % side, cell % side, kTableDepth));
    }
  }
};
constexpr KeyTable kKeyTable;

// Keys of all points, or on the coarsest curve the cells they lie in; -1 for those that are not finite.
template <typename T>
inline void make_keys(const Layout<T>& of, const T* lowest, T factor, Int<T>* keys) {
  constexpr int W = Lanes<T>::W;
  const int64_t slots = padded(of.count);
  const int depth = of.sort.depth;
  const bool tabled = depth == kTableDepth;
  const IVec<T> inside = all_int<T>((1 << depth) - 1);
  for (int64_t i = 0; i < slots; i += W) {
    const Vec<T> x = load(of.soa + i), y = load(of.soa + slots + i), z = load(of.soa + 2 * slots + i);
    const Mask<T> finite = all_finite<T>(x, y, z);
    const Vec<T> zero{};
    const Vec<T> cell[3] = {(x - lowest[0]) * factor, (y - lowest[1]) * factor, (z - lowest[2]) * factor};
    IVec<T> at[3];
    for (int c = 0; c < 3; ++c) at[c] = __builtin_convertvector(select(finite, cell[c], zero), IVec<T>) & inside;
    const IVec<T> key = tabled ? (((at[0] << kTableDepth) | at[1]) << kTableDepth) | at[2] : hilbert_key(at[0], at[1], at[2], depth);
    store_int<T>(keys + i, select(finite, key, all_int<T>(-1)));
  }
}

// A point on its way to its place, with its key and its index in one number: fewer writes to far places than by coordinate.
template <typename T>
struct Record {
  T x, y, z;
  Int<T> who;
};

// Sorts the finite points of at most 4096 by the keys of their cells (stable) and notes the others behind them.
template <typename T>
inline void sort_by_cell(Layout<T>& to, Int<T>* cells, Record<T>* records) {
  uint32_t* ends = to.cell_end;
  Int<T>* index = to.index;
  __builtin_memset(ends, 0, kMostCells * sizeof(uint32_t));
  int64_t dropped = to.live;
  for (int64_t i = 0; i < to.count; ++i) {
    if (cells[i] < 0) {
      index[dropped++] = Int<T>(i);
      continue;
    }
    cells[i] = kKeyTable.key[cells[i]];
    ++ends[cells[i]];
  }
  sum_before(ends, kMostCells);
  const T* p = to.points;
  for (int64_t i = 0; i < to.count; ++i, p += 3) {
    if (cells[i] >= 0) records[ends[cells[i]]++] = {p[0], p[1], p[2], (cells[i] << kIndexBits) | Int<T>(i)};
  }
  T *x = to.x, *y = to.y, *z = to.z;
  uint32_t* key = to.key;
  for (int64_t i = 0; i < to.live; ++i) {
    const Record<T> one = records[i];
    x[i] = one.x, y[i] = one.y, z[i] = one.z;
    index[i] = one.who & ((1 << kIndexBits) - 1), key[i] = uint32_t(one.who >> kIndexBits);
  }
}

// Puts (key, index) pairs in the order of one digit, whose counts are in `ends`; next(i, key, index) says which pair is i-th and
// whether it takes part, put(place, key, index) takes it.
template <typename Next, typename Put>
inline void sort_by_digit(int64_t count, int cells, int shift, uint32_t* ends, const Next& next, const Put& put) {
  sum_before(ends, cells);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t key, index;
    if (next(i, key, index)) put(ends[(key >> shift) & (cells - 1)]++, key, index);
  }
}

// Sorts the finite points by two digits of their keys or more (stable) and notes the others behind them.
template <typename T>
inline void sort_by_key(Layout<T>& to, const Int<T>* keys, uint64_t* one, uint64_t* other) {
  const CurveSort sort = to.sort;
  const int cells = 1 << sort.bits;
  uint32_t lower[2][1 << 9];  // counts of all digits but the upper one
  __builtin_memset(lower, 0, sizeof(lower));
  __builtin_memset(to.cell_end, 0, cells * sizeof(uint32_t));
  int64_t dropped = to.live;
  for (int64_t i = 0; i < to.count; ++i) {
    if (keys[i] < 0) {
      to.index[dropped++] = Int<T>(i);
      continue;
    }
    ++to.cell_end[keys[i] >> ((sort.passes - 1) * sort.bits)];
    for (int pass = 0; pass + 1 < sort.passes; ++pass) ++lower[pass][(keys[i] >> (pass * sort.bits)) & (cells - 1)];
  }
  const auto as_given = [&](int64_t i, uint32_t& key, uint32_t& index) {
    key = uint32_t(keys[i]), index = uint32_t(i);
    return keys[i] >= 0;
  };
  const auto as_sorted = [&](int64_t i, uint32_t& key, uint32_t& index) {
    key = uint32_t(one[i] >> 32), index = uint32_t(one[i]);
    return true;
  };
  const auto to_list = [&](uint32_t place, uint32_t key, uint32_t index) { other[place] = (uint64_t(key) << 32) | index; };
  sort_by_digit(to.count, cells, 0, lower[0], as_given, to_list);
  for (int pass = 1; pass < sort.passes; ++pass) {
    uint64_t* swapped = one;
    one = other, other = swapped;
    uint32_t* ends = pass == sort.passes - 1 ? to.cell_end : lower[pass];
    sort_by_digit(to.live, cells, pass * sort.bits, ends, as_sorted, to_list);
  }
  for (int64_t i = 0; i < to.live; ++i) {
    const uint32_t index = uint32_t(other[i]);
    const T* p = to.points + 3 * int64_t(index);
    to.key[i] = uint32_t(other[i] >> 32), to.index[i] = Int<T>(index);
    to.x[i] = p[0], to.y[i] = p[1], to.z[i] = p[2];
  }
}

// Bounds the sorted points.
template <typename T>
inline void box_points(Layout<T>& to) {
  to.buckets = padded(to.live) / kBucket, to.supers = padded(to.buckets) / kBucket;
  const int64_t slots = padded(to.live);
  for (int64_t i = to.live; i < slots; ++i) to.x[i] = to.y[i] = to.z[i] = __builtin_nan("");
  find_spots(to.grid, to.x, to.y, to.z, to.live, to.spot);
  make_boxes({to.spot, to.spot}, to.live, to.box);
  make_boxes(to.box, to.buckets, to.super);
}

// Lays out two clouds, of queries and of the points they search, along one curve.
template <typename T>
void lay_out(const T* query, int64_t queries, const T* support, int64_t count, void* scratch, void* query_memory, void* support_memory) {
  Layout<T>* both[2] = {static_cast<Layout<T>*>(query_memory), static_cast<Layout<T>*>(support_memory)};
  T lowest[3], highest[3], extent = 0;
  for (int c = 0; c < 3; ++c) lowest[c] = __builtin_inf(), highest[c] = -__builtin_inf();
  take_points(*both[0], query, queries, lowest, highest);
  take_points(*both[1], support, count, lowest, highest);
  for (int c = 0; c < 3; ++c) extent = highest[c] - lowest[c] > extent ? highest[c] - lowest[c] : extent;
  const CurveSort sort = sort_for(queries > count ? queries : count);
  // The layout is only a matter of speed: a cloud too large or too small to be scaled stays in its order.
  T factor = T(0.9999) * T(1 << sort.depth) / extent;
  if (!(extent < T(1e30) && factor < T(1e30))) factor = 0;
  for (Layout<T>* one : both) {
    one->sort = sort;
    one->grid = {{lowest[0], lowest[1], lowest[2]}, factor * T(kGridSide >> sort.depth)};
    Pieces pieces{static_cast<char*>(scratch)};
    Int<T>* keys = pieces.take<Int<T>>(padded(one->count));
    make_keys(*one, lowest, factor, keys);
    if (sort.passes == 1) {
      sort_by_cell(*one, keys, pieces.take<Record<T>>(one->count));
    } else {
      uint64_t *list = pieces.take<uint64_t>(one->count), *spare = pieces.take<uint64_t>(one->count);
      sort_by_key(*one, keys, list, spare);
    }
    box_points(*one);
  }
}

// About where a key would stand among the sorted points.
template <typename T>
inline int64_t place_of(const Layout<T>& in, uint32_t key) {
  const uint32_t cell = key >> ((in.sort.passes - 1) * in.sort.bits);
  int64_t from = cell ? in.cell_end[cell - 1] : 0, size = in.cell_end[cell] - from;
  for (; size > kBucket / 2; size -= size / 2) from += in.key[from + size / 2] < key ? size / 2 : 0;
  return from + size / 2;
}

// Where a window of `size` sorted points around a key begins; there are at least that many.
template <typename T>
inline int64_t window_around(const Layout<T>& in, uint32_t key, int64_t size) {
  const int64_t from = place_of(in, key) - size / 2, last = in.live - size;
  return from < 0 ? 0 : from > last ? last : from;
}

// Squared distances of one point to a register of points.
template <typename T>
struct Probe {
  Vec<T> x, y, z;
  Probe(T px, T py, T pz) : x(all<T>(px)), y(all<T>(py)), z(all<T>(pz)) {}
  Vec<T> to(const Layout<T>& in, int64_t at) const {
    return squared_distance(x - load(in.x + at), y - load(in.y + at), z - load(in.z + at));
  }
};

// Lists the buckets that may hold a point within reach of a probe. Both lists have room for 16 entries more than there are boxes.
template <typename T>
inline int64_t list_buckets(const Layout<T>& in, const GridProbe& probe, int32_t* supers, int32_t* buckets) {
  const auto list = [&](const GridBoxes& boxes, int64_t from, int64_t to, int32_t* out) {
    int64_t found = 0;
    for (int64_t at = from; at < to; at += kGridLanes) found += append_lanes<float>(probe.reaches(boxes, at), int32_t(at), out + found);
    return found;
  };
  if (in.supers <= 4) return list(in.box, 0, in.buckets, buckets);
  const int64_t near = list(in.super, 0, in.supers, supers);
  int64_t found = 0;
  for (int64_t i = 0; i < near; ++i) {
    const int64_t first = int64_t(supers[i]) * kBucket;
    found += list(in.box, first, first + kBucket, buckets + found);
  }
  return found;
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
