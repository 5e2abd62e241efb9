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

// What padded lengths are a multiple of.
constexpr int64_t kBucket = 16;

// Points that the patch kernel takes at most, in either patch of a pair.
constexpr int64_t kPatch = 64;

constexpr int64_t padded(int64_t count) { return (count + kBucket - 1) / kBucket * kBucket; }

// Points in a leaf of the sampling kernel, leaves in a group, and clouds that it works on at a time.
constexpr int64_t kLeaf = 32;
constexpr int64_t kGroup = 16;
constexpr int kFpsTogether = 2;

// Rules of farthest point sampling. `rank` is the place of every point in the order of preference among equals (nullptr: its
// index). A cloud is doubtful if several points were farthest at one of the first `distinct_steps` samples, or if points had
// to be repeated.
struct FpsRules {
  bool skip_near_origin;
  const int32_t* rank;
  int64_t distinct_steps;
};

// A bfloat16 number as it lies in memory.
struct Bfloat16 {
  uint16_t pattern;
};

// Rules of one auction, see reference/emd.py: the cost of infinitely far pairs, the price steps of the first and the last phase,
// and how many bids there may be.
template <typename T>
struct EmdRules {
  T far, first_eps, last_eps;
  int64_t bids;
};

constexpr double kSmallestRoot = 1e-12;  // where the L1 form of the Chamfer loss clamps squared distances under its root

// Who chose whom in a pair of clouds of n and m points: `forth` (n) are places in b, `back` (m) in a. The derivative with respect to the
// squared distance of point i to the one it chose is even[way], times weight[way][i] where there are weights. The tensors
// that hold the points end at `end_a` and `end_b`; scratch of pair_scratch<T>(n, m) bytes, aligned to 64.
template <typename T>
struct PairChoices {
  int64_t n, m;
  const int32_t *forth, *back;
  const T* weight[2];
  T even[2];
  const T *end_a, *end_b;
  void* scratch;
};

// All points are (x, y, z) triples unless an argument is named `soa`: then all x, all y, all z, `padded(count)` each, NaN in
// the padding. Scratch is memory of the given size in bytes, aligned to 64.
template <typename T>
struct Kernels {
  // Chooses `samples` of `count` points of each cloud and adds to `doubtful` (one a cloud, or nullptr); scratch of
  // fps_scratch<T>(count) bytes.
  void (*fps)(const T* points, int64_t clouds, int64_t count, int64_t samples, const FpsRules& rules, void* scratch, int64_t* out,
              uint8_t* doubtful);
  // Chooses k nearest of `count` for each of `queries` queries; scratch of knn_scratch<T>(count) bytes.
  void (*knn)(const T* query, int64_t queries, const T* soa, int64_t count, int64_t k, void* scratch, T* sqdist, int64_t* idx);
  // The nearest target of every query.
  void (*nearest)(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx);
  // The three nearest targets of every query.
  void (*three_nn)(const T* query, int64_t queries, const T* target, int64_t count, T* sqdist, int64_t* idx);
  // The first k points closer than sqrt(limit) for every query.
  void (*ball_query)(const T* query, int64_t queries, const T* soa, int64_t count, T limit, int64_t k, int64_t* idx);
  // Both nearest-point searches of up to kBucket pairs of patches (n and m points, each at most kPatch). The indices go to rows,
  // i1 (pairs, n) and i2 (pairs, m); the squared distances to columns, d1 (n, kBucket) and d2 (m, kBucket), of which those without a
  // pair hold anything.
  void (*patches)(const T* a, const T* b, int64_t pairs, int64_t n, int64_t m, T* d1, int32_t* i1, T* d2, int32_t* i2);
  // Adds up the columns of distances (count, kBucket), or of their roots, clamped as the L1 loss is, one sum a pair.
  void (*column_sums)(const T* sqdist, int64_t count, bool root, double* sums);
  // The gradients (n, 3) and (m, 3) of a pair of clouds through the pairs they chose; a null pointer leaves one out. Returns false, having
  // done nothing, where a place does not exist.
  bool (*pair_gradients)(const T* a, const T* b, const PairChoices<T>& choices, T* grad_a, T* grad_b);
  // The derivatives of the roots of the distances of `count` points to those they chose, with respect to the squares; zero where
  // the root is clamped. `out` has room for kBucket more.
  void (*root_weights)(const T* from, const T* to, const int32_t* idx, int64_t count, T* out);
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
  // Adds row i of `from` to row idx[i] of `to`, or, with weights, weight[3 i + k] times row i to row idx[3 i + k], k = 0, 1, 2;
  // `channels` of the `stride` values a row.
  void (*scatter_rows)(const T* from, const int64_t* idx, const T* weight, int64_t rows, int64_t stride, int64_t channels, T* to);
  void (*scatter_rows_bf16)(const Bfloat16* from, const int64_t* idx, const T* weight, int64_t rows, int64_t stride,
                            int64_t channels, T* to);
  // The products of row i of `from` with rows idx[3 i + k] of `values`, k = 0, 1, 2.
  void (*dot_rows)(const T* from, const T* values, const int64_t* idx, int64_t rows, int64_t channels, T* out);
  void (*dot_rows_bf16)(const Bfloat16* from, const Bfloat16* values, const int64_t* idx, int64_t rows, int64_t channels, T* out);
  // Matches the points of a with those of b, `count` each. `assignment` holds the nearest point of b on entry, which stays for
  // whoever the auction leaves without a partner; scratch of emd_scratch<T>(count) bytes.
  void (*emd)(const T* a, const T* b, int64_t count, const EmdRules<T>& rules, void* scratch, int64_t* assignment);
};

constexpr size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Scratch of the sampling kernel: a list of leaves of all clouds it works on, and the memory of each cloud.
template <typename T>
constexpr size_t fps_list(int64_t count) {
  return lines(sizeof(int32_t) * (kFpsTogether * pieces_of(count, kLeaf) + 16));
}

template <typename T>
constexpr size_t fps_cloud(int64_t count) {
  const size_t leaves = pieces_of(count, kLeaf), groups = pieces_of(leaves, kGroup), uppers = pieces_of(groups, kGroup);
  const size_t points = leaves * kLeaf;
  return 4 * lines(sizeof(int32_t) * (points + 16)) + 3 * lines(sizeof(T) * points) + leaves * 4 * kLeaf * sizeof(T) +
         (groups + uppers) * 8 * kGroup * sizeof(T) + lines(sizeof(int32_t) * (uppers * kGroup + 16));
}

template <typename T>
constexpr size_t fps_scratch(int64_t count) {
  return fps_list<T>(count) + kFpsTogether * fps_cloud<T>(count);
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

// Scratch of the gradients of a pair: two sums of four values a point, and a copy of it.
template <typename T>
constexpr size_t pair_scratch(int64_t n, int64_t m) {
  return 3 * (n + m) * 4 * sizeof(T);
}

constexpr size_t kPieceGap = 192;  // between the arrays of a layout

template <typename T>
constexpr size_t layout_bytes(int64_t count) {  // a multiple of 64
  const size_t points = padded(count), buckets = padded(points / kBucket), supers = padded(buckets / kBucket);
  return points * (7 * sizeof(T) + 12) + (buckets + supers) * 16 + 4096 * 4 + 512 + 20 * (64 + kPieceGap);
}

template <typename T>
constexpr size_t lay_out_scratch(int64_t count) {
  return padded(count) * 5 * sizeof(T) + 3 * (64 + kPieceGap);  // a key, and four numbers or two longer keys
}

template <typename T>
constexpr size_t search_scratch(int64_t count) {
  return (padded(count) + 64) * (7 * sizeof(T) + 16) + 16 * (64 + kPieceGap);
}

// Name of the instruction set in use, after M2AE_CPU (avx512 | avx2 | base) has had its say.
const char* active_isa();

// A table of kernels has a form for each instruction set, in a file that is compiled for it, and `of_processor` is the one that the
// processor at hand runs best.
template <typename Table> const Table& of_processor();
namespace base { template <typename Table> const Table& table(); }
namespace avx2 { template <typename Table> const Table& table(); }
namespace avx512 { template <typename Table> const Table& table(); }

#define M2AE_DECLARE_TABLE(Table)                  \
  template <> const Table& of_processor<Table>();  \
  template <> const Table& base::table<Table>();   \
  template <> const Table& avx2::table<Table>();   \
  template <> const Table& avx512::table<Table>();

M2AE_DECLARE_TABLE(Kernels<float>)
M2AE_DECLARE_TABLE(Kernels<double>)

template <typename T> const Kernels<T>& kernels() { return of_processor<Kernels<T>>(); }

}  // namespace m2ae
