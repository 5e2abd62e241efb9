// Nearest points of small patches, both ways at once: one pair of patches per lane, so that both minima are vertical.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

// Rows worked on together, to share the loads and stores of the other side: as many as the registers hold.
constexpr int kRows = M2AE_BYTES == 64 ? 4 : 2;

// Four rows of 4x4 blocks, one block in each 16 bytes, become four columns.
#if defined(__AVX512F__)
inline void transpose_blocks(__m512 (&r)[4]) {
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = _mm512_shuffle_ps(a, c, 0x44), r[1] = _mm512_shuffle_ps(a, c, 0xEE);
  r[2] = _mm512_shuffle_ps(b, d, 0x44), r[3] = _mm512_shuffle_ps(b, d, 0xEE);
}
#endif

// Transposes what can be taken four values at a time and returns how many values of each patch that were.
inline int64_t transpose_fours(const float* const* source, int64_t length, float* out) {
  constexpr int W = Lanes<float>::W;
  int64_t k = 0;
#if defined(__AVX512F__)
  for (; k + 4 <= length; k += 4) {
    __m512 r[4];
    for (int s = 0; s < 4; ++s) {
      r[s] = _mm512_broadcast_f32x4(_mm_loadu_ps(source[s] + k));
      r[s] = _mm512_mask_broadcast_f32x4(r[s], 0x00F0, _mm_loadu_ps(source[4 + s] + k));
      r[s] = _mm512_mask_broadcast_f32x4(r[s], 0x0F00, _mm_loadu_ps(source[8 + s] + k));
      r[s] = _mm512_mask_broadcast_f32x4(r[s], 0xF000, _mm_loadu_ps(source[12 + s] + k));
    }
    transpose_blocks(r);
    for (int s = 0; s < 4; ++s) _mm512_store_ps(out + (k + s) * W, r[s]);
  }
#elif defined(__SSE2__)
  for (; k + 4 <= length; k += 4) {
    for (int lane = 0; lane < W; lane += 4) {
      __m128 r[4];
      for (int s = 0; s < 4; ++s) r[s] = _mm_loadu_ps(source[lane + s] + k);
      _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
      for (int s = 0; s < 4; ++s) _mm_store_ps(out + (k + s) * W + lane, r[s]);
    }
  }
#endif
  return k;
}

inline int64_t transpose_fours(const double* const*, int64_t, double*) { return 0; }

// Writes the `length` values of W patches to `out` (length, W), one patch a lane; the last patch fills missing lanes.
template <typename T>
void patches_to_lanes(const T* from, int64_t patches, int64_t length, T* out) {
  constexpr int W = Lanes<T>::W;
  const T* source[W];
  for (int lane = 0; lane < W; ++lane) source[lane] = from + (lane < patches ? lane : patches - 1) * length;
  for (int64_t k = transpose_fours(source, length, out); k < length; ++k) {
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

// Writes the first `patches` lanes of the minima to columns `lane`.. of (count, kBucket).
template <typename T>
void store_minima(const PatchMinima<T>& minima, int64_t count, int64_t lane, T* sqdist, int32_t* idx) {
  constexpr int W = Lanes<T>::W;
  for (int64_t i = 0; i < count; ++i) {
    __builtin_memcpy(sqdist + i * kBucket + lane, minima.sqdist + i * W, W * sizeof(T));
    for (int w = 0; w < W; ++w) idx[i * kBucket + lane + w] = int32_t(minima.who[i * W + w]);
  }
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
    store_minima(to_b, n, lane, d1, i1);
    store_minima(to_a, m, lane, d2, i2);
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
