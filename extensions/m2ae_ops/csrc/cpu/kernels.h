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

// Points that the patch kernel takes at most, in either patch of a pair.
constexpr int64_t kPatch = 64;

constexpr int64_t padded(int64_t count) { return (count + kBucket - 1) / kBucket * kBucket; }

// Rules of farthest point sampling. `order` lists the points by preference among equals (nullptr: by index).
struct FpsRules {
  bool skip_near_origin;
  const int32_t* order;
};

// Rules of one auction, see reference/emd.py: the cost of infinitely far pairs, the price steps of the first and the last phase,
// and how many bids there may be.
template <typename T>
struct EmdRules {
  T far, first_eps, last_eps;
  int64_t bids;
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
  // Both nearest-point searches of up to kBucket pairs of patches (n and m points, each at most kPatch). Column p of the
  // outputs, d1 and i1 (n, kBucket), d2 and i2 (m, kBucket), belongs to pair p; columns without a pair hold anything.
  void (*patches)(const T* a, const T* b, int64_t pairs, int64_t n, int64_t m, T* d1, int32_t* i1, T* d2, int32_t* i2);
  // Adds the sums of y and of y * (x - shift) over the rows of (rows, channels) matrices to out (2, channels).
  void (*row_sums)(const T* x, const T* y, const double* shift, int64_t rows, int64_t channels, double* out);
  // Matches the points of a with those of b, `count` each. `assignment` holds the nearest point of b on entry, which stays for
  // whoever the auction leaves without a partner; scratch of emd_scratch<T>(count) bytes.
  void (*emd)(const T* a, const T* b, int64_t count, const EmdRules<T>& rules, void* scratch, int64_t* assignment);
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

template <typename T>
constexpr size_t emd_scratch(int64_t count) {
  const size_t candidates = 128 / sizeof(T);  // two of every lane of the widest register
  return padded(count) * 4 * sizeof(T) + count * ((candidates + 1) * sizeof(T) + (candidates + 3) * sizeof(int32_t));
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
