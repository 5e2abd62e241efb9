// Nearest points of small patches, both ways at once: one pair of patches per lane, so that both minima are vertical.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "strips_impl.h"
#include "tiles_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

// Rows worked on together, to share the loads and stores of the other side: as many as the registers hold.
constexpr int kRows = M2AE_BYTES == 64 ? 4 : 2;

// Transposes what can be taken several values at a time and returns how many values of each patch that were.
inline int64_t transpose_whole(const float* const* source, int64_t length, float* out) {
  constexpr int W = Lanes<float>::W;
  int64_t k = 0;
#if defined(__AVX512F__)
  // Eight values of all sixteen patches: both halves of a register are squares of eight.
  for (; k + 8 <= length; k += 8) {
    Vec<float> square[8];
    for (int p = 0; p < 8; ++p) {
      const __m512 half = _mm512_castps256_ps512(_mm256_loadu_ps(source[p] + k));
      square[p] = (Vec<float>)_mm512_insertf32x8(half, _mm256_loadu_ps(source[8 + p] + k), 1);
    }
    turn<4, float>(square);
    for (int s = 0; s < 8; ++s) store(out + (k + s) * W, square[s]);
  }
#else
  for (; k + W <= length; k += W) {
    Vec<float> square[W];
    for (int p = 0; p < W; ++p) square[p] = load(source[p] + k);
    turn<W / 2, float>(square);
    for (int s = 0; s < W; ++s) store(out + (k + s) * W, square[s]);
  }
#endif
  return k;
}

inline int64_t transpose_whole(const double* const*, int64_t, double*) { return 0; }

// Writes the `length` values of W patches to `out` (length, W), one patch a lane; the last patch fills missing lanes.
template <typename T>
void patches_to_lanes(const T* from, int64_t patches, int64_t length, T* out) {
  constexpr int W = Lanes<T>::W;
  const T* source[W];
  for (int lane = 0; lane < W; ++lane) source[lane] = from + (lane < patches ? lane : patches - 1) * length;
  for (int64_t k = transpose_whole(source, length, out); k < length; ++k) {
    for (int lane = 0; lane < W; ++lane) out[k * W + lane] = source[lane][k];
  }
}

// What one side of the patches has found so far: the smallest squared distance of every point and whose it is.
template <typename T>
struct PatchMinima {
  T sqdist[kPatch * Lanes<T>::W] __attribute__((aligned(64)));
  Int<T> who[kPatch * Lanes<T>::W] __attribute__((aligned(64)));
};

// Compares R points of a, from `first` on, with all m points of b, in every lane.
template <typename T, int R>
void patch_rows(const T* a, const T* b, int64_t first, int64_t m, PatchMinima<T>& to_b, PatchMinima<T>& to_a) {
  constexpr int W = Lanes<T>::W;
  Vec<T> x[R], y[R], z[R], best[R];
  IVec<T> who[R];
  for (int r = 0; r < R; ++r) {
    const T* point = a + (first + r) * 3 * W;
    x[r] = load(point), y[r] = load(point + W), z[r] = load(point + 2 * W);
    best[r] = all<T>(__builtin_inf()), who[r] = IVec<T>{};
  }
  IVec<T> column{};
  for (int64_t j = 0; j < m; ++j) {
    const T* point = b + j * 3 * W;
    const Vec<T> bx = load(point), by = load(point + W), bz = load(point + 2 * W);
    Vec<T> nearest = load(to_a.sqdist + j * W);
    IVec<T> nearest_who = load_int<T>(to_a.who + j * W);
    for (int r = 0; r < R; ++r) {
      const Vec<T> d = squared_distance(x[r] - bx, y[r] - by, z[r] - bz);
      const Mask<T> closer = lt(d, best[r]);  // strict: the first of equals stays; NaN never wins
      best[r] = select(closer, d, best[r]);
      who[r] = select(closer, column, who[r]);
      const Mask<T> back = lt(d, nearest);
      nearest = select(back, d, nearest);
      nearest_who = select(back, all_int<T>(Int<T>(first + r)), nearest_who);
    }
    store(to_a.sqdist + j * W, nearest);
    store_int<T>(to_a.who + j * W, nearest_who);
    column = column + 1;
  }
  for (int r = 0; r < R; ++r) {
    store(to_b.sqdist + (first + r) * W, best[r]);
    store_int<T>(to_b.who + (first + r) * W, who[r]);
  }
}

// Writes the smallest distances to columns `lane`.. of (count, kBucket).
template <typename T>
void store_distances(const PatchMinima<T>& minima, int64_t count, int64_t lane, T* sqdist) {
  constexpr int W = Lanes<T>::W;
  for (int64_t i = 0; i < count; ++i) store(sqdist + i * kBucket + lane, load(minima.sqdist + i * W));
}

// Writes the choices of the first `patches` lanes to rows (patches, count).
template <typename T>
void store_choices(const PatchMinima<T>& minima, int64_t patches, int64_t count, int32_t* rows) {
  constexpr int W = Lanes<T>::W;
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(int32_t)) {
    for (; i + W <= count; i += W) {
      Vec<T> square[W];
      for (int k = 0; k < W; ++k) square[k] = (Vec<T>)load_int<T>(minima.who + (i + k) * W);
      turn<W / 2, T>(square);
      for (int p = 0; p < patches; ++p) store_int<T>(rows + p * count + i, (IVec<T>)square[p]);
    }
  }
  for (; i < count; ++i) {
    for (int64_t p = 0; p < patches; ++p) rows[p * count + i] = int32_t(minima.who[i * W + p]);
  }
}

// Eight columns at a time, whose sums wait for each other less than those of one would.
template <typename T>
void column_sums(const T* sqdist, int64_t count, bool root, double* sums) {
  constexpr int W = Lanes<T>::W;
  D8 total[kBucket / kEight] = {};
  for (int64_t i = 0; i < count; ++i, sqdist += kBucket) {
    T row[kBucket];
    for (int lane = 0; lane < kBucket; lane += W) {
      const Vec<T> d = load(sqdist + lane);
      store(row + lane, root ? root_of(larger(d, all<T>(T(kSmallestRoot)))) : d);
    }
    for (int part = 0; part < kBucket / kEight; ++part) total[part] += exact(load8(row + part * kEight));
  }
  __builtin_memcpy(sums, total, sizeof(total));
}

template <typename T>
void patches(const T* a, const T* b, int64_t pairs, int64_t n, int64_t m, T* d1, int32_t* i1, T* d2, int32_t* i2) {
  constexpr int W = Lanes<T>::W;
  T lanes_a[3 * kPatch * W] __attribute__((aligned(64))), lanes_b[3 * kPatch * W] __attribute__((aligned(64)));
  PatchMinima<T> to_b, to_a;
  for (int64_t lane = 0; lane < pairs; lane += W) {
    const int64_t here = pairs - lane < W ? pairs - lane : W;
    patches_to_lanes(a + lane * 3 * n, here, 3 * n, lanes_a);
    patches_to_lanes(b + lane * 3 * m, here, 3 * m, lanes_b);
    for (int64_t k = 0; k < m * W; ++k) to_a.sqdist[k] = T(__builtin_inf()), to_a.who[k] = 0;
    int64_t i = 0;
    for (; i + kRows <= n; i += kRows) patch_rows<T, kRows>(lanes_a, lanes_b, i, m, to_b, to_a);
    for (; i < n; ++i) patch_rows<T, 1>(lanes_a, lanes_b, i, m, to_b, to_a);
    store_distances(to_b, n, lane, d1);
    store_distances(to_a, m, lane, d2);
    store_choices(to_b, here, n, i1 + lane * n);
    store_choices(to_a, here, m, i2 + lane * m);
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
