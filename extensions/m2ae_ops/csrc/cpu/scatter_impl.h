// Sums into rows, the transpose of gathering them. Every sum is taken in the order of the index.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

inline float widened(float v) { return v; }
inline double widened(double v) { return v; }
inline float widened(Bfloat16 v) {
  const uint32_t pattern = uint32_t(v.pattern) << 16;
  float out;
  __builtin_memcpy(&out, &pattern, sizeof(out));
  return out;
}

// The compiler turns the loops over `channels` into vectors; the rows of `to` do not overlap those of `from`.
template <typename T, typename S>
inline void add_row(T* __restrict to, const S* __restrict from, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) to[c] += widened(from[c]);
}

template <typename T, typename S>
inline void add_weighted_row(T* __restrict to, const S* __restrict from, T weight, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) to[c] += weight * widened(from[c]);
}

// Asks for a row that is due soon: the processor's own guesses end with every page of memory.
template <typename S>
inline void fetch_ahead(const S* from, int64_t row, int64_t rows, int64_t stride, int64_t channels) {
  constexpr int64_t kAhead = 8, kLine = 64 / sizeof(S);
  if (row + kAhead >= rows) return;
  for (int64_t c = 0; c < channels; c += kLine) __builtin_prefetch(from + (row + kAhead) * stride + c);
}

template <typename T, typename S>
void scatter_rows(const S* from, const int64_t* idx, const T* weight, int64_t rows, int64_t stride, int64_t channels, T* to) {
  if (weight == nullptr) {
    for (int64_t i = 0; i < rows; ++i) {
      fetch_ahead(from, i, rows, stride, channels);
      add_row(to + idx[i] * stride, from + i * stride, channels);
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {  // three targets a row
    for (int64_t k = 3 * i; k < 3 * i + 3; ++k) add_weighted_row(to + idx[k] * stride, from + i * stride, weight[k], channels);
  }
}

// Products of every row with three rows of `values`. The number of partial sums does not depend on the instruction set.
template <typename T, typename S>
void dot_rows(const S* __restrict from, const S* __restrict values, const int64_t* idx, int64_t rows, int64_t channels,
              T* __restrict out) {
  constexpr int kSums = 16;
  for (int64_t i = 0; i < 3 * rows; ++i) {
    const S *a = from + i / 3 * channels, *b = values + idx[i] * channels;
    T sums[kSums] = {};
    int64_t c = 0;
    for (; c + kSums <= channels; c += kSums) {
      for (int s = 0; s < kSums; ++s) sums[s] += widened(a[c + s]) * widened(b[c + s]);
    }
    for (int s = 0; c < channels; ++c, ++s) sums[s] += widened(a[c]) * widened(b[c]);
    for (int half = kSums / 2; half > 0; half /= 2) {
      for (int s = 0; s < half; ++s) sums[s] += sums[s + half];
    }
    out[i] = sums[0];
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
