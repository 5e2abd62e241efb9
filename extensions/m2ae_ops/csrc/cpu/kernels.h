// What the vector kernels offer to the rest of the library: plain functions on one cloud, behind a table of pointers.
//
// The same source (kernels_impl.h) is compiled once per instruction set and the best table is picked at run time, so the
// library runs on any processor of the architecture. No header of PyTorch or of the C++ standard library with inline
// functions may reach those files: the linker keeps one copy of an inline function, and it could be the one compiled for a
// newer processor than the one at hand.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m2ae {

// Points in a bucket of the sampling kernel; also what padded lengths are a multiple of.
constexpr int64_t kBucket = 16;

constexpr int64_t padded(int64_t count) { return (count + kBucket - 1) / kBucket * kBucket; }

// Rules of farthest point sampling. `order` lists the points by preference among equals (nullptr: by index).
struct FpsRules {
  bool skip_near_origin;
  const int32_t* order;
};

// All points are (x, y, z) triples unless an argument is named `soa`: then all x, all y, all z, `padded(count)` each, NaN in
// the padding. Scratch is memory of the given size in bytes, aligned to 64.
template <typename T>
struct Kernels {
  // Chooses `samples` of `count` points of each cloud; scratch of 2 * fps_scratch<T>(count) bytes.
  void (*fps)(const T* points, int64_t clouds, int64_t count, int64_t samples, const FpsRules& rules, void* scratch, int64_t* out);
  // Chooses k nearest of `count` for each of `queries` queries; scratch of knn_scratch<T>(count) bytes.
  void (*knn)(const T* query, int64_t queries, const T* soa, int64_t count, int64_t k, void* scratch, T* sqdist, int64_t* idx);
  // The nearest target of every query.
  void (*nearest)(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx);
  // The three nearest targets of every query.
  void (*three_nn)(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx);
  // The first k points closer than sqrt(limit) for every query.
  void (*ball_query)(const T* query, int64_t queries, const T* soa, int64_t count, T limit, int64_t k, int64_t* idx);
  // Sorts two clouds, of queries and of the points they search, along one curve (buckets_impl.h): memory of
  // layout_bytes<T>(count) for each, scratch of lay_out_scratch<T>(the larger count). The clouds must outlive the layouts.
  void (*lay_out)(const T* query, int64_t queries, const T* support, int64_t count, void* scratch, void* query_layout,
                  void* support_layout);
  // The searches above on laid-out clouds, for `number` queries from the sorted place `first` on (a multiple of 16). Results
  // go to the place a query has in its cloud; scratch of search_scratch<T>(points searched).
  void (*knn_sorted)(const void* query_layout, int64_t first, int64_t number, const void* support_layout, int64_t k,
                     void* scratch, T* sqdist, int64_t* idx);
  // `nearest` and `three_nn` take 16 queries together, which suits clouds of queries that are not much sparser than the targets.
  void (*nearest_sorted)(const void* query_layout, int64_t first, int64_t number, const void* target_layout, void* scratch,
                         T* sqdist, int64_t* idx);
  void (*three_nn_sorted)(const void* query_layout, int64_t first, int64_t number, const void* target_layout, void* scratch,
                          T* sqdist, int64_t* idx);
  void (*ball_sorted)(const void* query_layout, int64_t first, int64_t number, const void* support_layout, T limit, int64_t k,
                      void* scratch, int64_t* idx);
  // Adds the sums of y and of y * (x - shift) over the rows of (rows, channels) matrices to out (2, channels).
  void (*row_sums)(const T* x, const T* y, const double* shift, int64_t rows, int64_t channels, double* out);
};

template <typename T>
constexpr size_t fps_scratch(int64_t count) {  // a multiple of 64
  const size_t points = padded(count);
  const size_t buckets = padded(points / kBucket);
  return points * (4 * sizeof(T) + 8 + 4 * sizeof(uint32_t)) + buckets * (7 * sizeof(T) + 12) + 2 * 512 * 4 + 20 * 64;
}

template <typename T>
constexpr size_t knn_scratch(int64_t count) {
  return (count + 63) / 64 * 64 * (3 * sizeof(T) + sizeof(int32_t)) + 64;
}

constexpr size_t kPieceGap = 192;  // between the arrays of a layout

template <typename T>
constexpr size_t layout_bytes(int64_t count) {  // a multiple of 64
  const size_t points = padded(count), buckets = padded(points / kBucket), supers = padded(buckets / kBucket);
  return points * (7 * sizeof(T) + 4) + (buckets + supers) * 6 * sizeof(T) + 4096 * 4 + 512 + 20 * (64 + kPieceGap);
}

template <typename T>
constexpr size_t lay_out_scratch(int64_t count) {
  return padded(count) * (sizeof(T) + 16) + 3 * (64 + kPieceGap);
}

template <typename T>
constexpr size_t search_scratch(int64_t count) {
  return (padded(count) + 64) * (7 * sizeof(T) + 16) + 16 * (64 + kPieceGap);
}

// Name of the instruction set in use, after M2AE_CPU (avx512 | avx2 | base) has had its say.
const char* active_isa();

template <typename T> const Kernels<T>& kernels();
template <> const Kernels<float>& kernels<float>();
template <> const Kernels<double>& kernels<double>();

// One table per instruction set, each in a file of its own that is compiled for it.
#define M2AE_DECLARE_TABLES(isa)                          \
  namespace isa {                                         \
  template <typename T> const Kernels<T>& table();        \
  template <> const Kernels<float>& table<float>();       \
  template <> const Kernels<double>& table<double>();     \
  }
M2AE_DECLARE_TABLES(base)
M2AE_DECLARE_TABLES(avx2)
M2AE_DECLARE_TABLES(avx512)

}  // namespace m2ae
