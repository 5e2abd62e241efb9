// Kernels for members of patches; see patches.h. Loops over channels are left to the compiler to vectorise.
#pragma once

#include "patches.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int64_t kLane = 32;  // channels whose maxima are kept in registers at a time

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(Bf16 v) {
  const uint32_t pattern = uint32_t(v.bits) << 16;
  float out;
  __builtin_memcpy(&out, &pattern, sizeof(out));
  return out;
}

inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, Bf16& out) {  // to nearest, ties to even
  uint32_t pattern;
  __builtin_memcpy(&pattern, &v, sizeof(pattern));
  const uint32_t rounded = (pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16;
  out.bits = uint16_t((pattern & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// Eight channels at a time, for the sums in double precision, which compilers do not vectorise by themselves.
constexpr int64_t kEight = 8;
typedef float F8 __attribute__((vector_size(32)));
typedef double D8 __attribute__((vector_size(64)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef uint16_t H8 __attribute__((vector_size(16)));

template <typename V, typename T>
inline V copy8(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline F8 load8(const float* from) { return copy8<F8>(from); }
inline D8 load8(const double* from) { return copy8<D8>(from); }
inline F8 load8(const Bf16* from) { return (F8)(__builtin_convertvector(copy8<H8>(from), U8) << 16); }

inline void store8(F8 v, float* to) { __builtin_memcpy(to, &v, sizeof(v)); }
inline void store8(D8 v, double* to) { __builtin_memcpy(to, &v, sizeof(v)); }
inline void store8(F8 v, Bf16* to) {
  const U8 pattern = (U8)v, nan = (U8)((pattern & 0x7FFFFFFFu) > 0x7F800000u);
  const U8 rounded = (pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16;
  const H8 out = __builtin_convertvector((nan & 0x7FC0u) | (~nan & rounded), H8);
  __builtin_memcpy(to, &out, sizeof(out));
}

inline D8 exact(F8 v) { return __builtin_convertvector(v, D8); }
inline D8 exact(D8 v) { return v; }

// Lane-wise: `value` where `open` > 0, else 0.
template <typename V>
inline V where_positive(V open, V value) {
  const auto mask = open > 0;
  return (V)((decltype(mask))value & mask);
}

inline void add8(double* to, D8 v) {
  const D8 sum = copy8<D8>(to) + v;
  __builtin_memcpy(to, &sum, sizeof(sum));
}

template <typename R>
inline R positive(R v) {  // NaN stays NaN
  return v <= 0 ? R(0) : v;
}

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

template <typename S>
void group_max(const S* x, int64_t groups, int64_t k, int64_t channels, S* values, uint8_t* winners) {
  using R = Real<S>;
  R best[kLane];
  int32_t winner[kLane];
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; c += kLane) {
      const int64_t width = at_most(kLane, channels - c);
      const S* from = x + g * k * channels + c;
      for (int64_t i = 0; i < width; ++i) best[i] = widen(from[i]), winner[i] = 0;
      for (int32_t m = 1; m < k; ++m) {
        const S* row = from + m * channels;
        for (int64_t i = 0; i < width; ++i) {
          const R value = widen(row[i]);
          const bool more = value > best[i] || (value != value && best[i] == best[i]);
          best[i] = more ? value : best[i];
          winner[i] = more ? m : winner[i];
        }
      }
      for (int64_t i = 0; i < width; ++i) narrow(best[i], values[g * channels + c + i]), winners[g * channels + c + i] = uint8_t(winner[i]);
    }
  }
}

// Adds `add` to the rows of one group, channels c..c + 8 * N, and sums up what is stored.
template <int N, typename S>
inline void join_columns(S* row, const Real<S>* add, int64_t k, int64_t channels, D8* plain, D8* square) {
  for (int64_t m = 0; m < k; ++m, row += channels) {
    for (int n = 0; n < N; ++n) {
      store8(load8(row + n * kEight) + load8(add + n * kEight), row + n * kEight);
      const D8 value = exact(load8(row + n * kEight));
      plain[n] += value, square[n] += value * value;
    }
  }
}

// The same over groups first..last; returns the channel after the last one.
template <int N, typename S>
inline int64_t join_strips(S* x, const Real<S>* group, int64_t first, int64_t last, int64_t k, int64_t channels, int64_t c, double* sums) {
  for (; c + N * kEight <= channels; c += N * kEight) {
    D8 plain[N] = {}, square[N] = {};
    for (int64_t g = first; g < last; ++g) join_columns<N>(x + g * k * channels + c, group + g * channels + c, k, channels, plain, square);
    for (int n = 0; n < N; ++n) add8(sums + c + n * kEight, plain[n]), add8(sums + channels + c + n * kEight, square[n]);
  }
  return c;
}

template <typename S>
void join(S* x, const Real<S>* group, int64_t groups, int64_t k, int64_t channels, double* sums) {
  const int64_t block = k < 128 ? 128 / k : 1;  // groups whose rows stay in the cache
  for (int64_t first = 0; first < groups; first += block) {
    const int64_t last = at_most(first + block, groups);
    int64_t c = join_strips<4>(x, group, first, last, k, channels, 0, sums);
    c = join_strips<1>(x, group, first, last, k, channels, c, sums);
    for (; c < channels; ++c) {
      for (int64_t r = first * k; r < last * k; ++r) {
        narrow(widen(x[r * channels + c]) + group[r / k * channels + c], x[r * channels + c]);
        const double value = widen(x[r * channels + c]);
        sums[c] += value, sums[channels + c] += value * value;
      }
    }
  }
}

// One row of relu(norm(x)). What is selected is computed first, so that no branch keeps the loop from being vectorised.
template <typename S, typename T>
inline void norm_relu_row(const S* __restrict row, const Norm<Real<S>>& norm, int64_t channels, T* __restrict to) {
  const Real<S> *__restrict mean = norm.mean, *__restrict scale = norm.scale, *__restrict shift = norm.shift;
  for (int64_t c = 0; c < channels; ++c) narrow(positive((widen(row[c]) - mean[c]) * scale[c] + shift[c]), to[c]);
}

template <typename S>
void norm_relu(const S* x, const Norm<Real<S>>& norm, int64_t rows, int64_t channels, S* out) {
  for (int64_t r = 0; r < rows; ++r) norm_relu_row(x + r * channels, norm, channels, out + r * channels);
}

template <typename S>
void lift(const Real<S>* points, const Real<S>* weight, const Real<S>* shift, int64_t rows, int64_t channels, S* out) {
  using R = Real<S>;
  const R *wx = weight, *wy = weight + channels, *wz = weight + 2 * channels;
  for (int64_t r = 0; r < rows; ++r) {
    const R x = points[3 * r], y = points[3 * r + 1], z = points[3 * r + 2];
    S* to = out + r * channels;
    for (int64_t c = 0; c < channels; ++c) narrow(positive((x * wx[c] + y * wy[c]) + (z * wz[c] + shift[c])), to[c]);
  }
}

template <typename S>
void lift_sums(const S* grad, const S* out, const Real<S>* points, int64_t rows, int64_t channels, double* sums) {
  constexpr int64_t kBlock = 256;  // rows that stay in the cache
  const int64_t whole = channels / kEight * kEight;
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t last = at_most(first + kBlock, rows);
    for (int64_t c = 0; c < whole; c += kEight) {
      D8 x = {}, y = {}, z = {}, plain = {};
      for (int64_t r = first; r < last; ++r) {
        const D8 passed = exact(where_positive(load8(out + r * channels + c), load8(grad + r * channels + c)));
        x += passed * double(points[3 * r]), y += passed * double(points[3 * r + 1]), z += passed * double(points[3 * r + 2]);
        plain += passed;
      }
      add8(sums + c, x), add8(sums + channels + c, y), add8(sums + 2 * channels + c, z), add8(sums + 3 * channels + c, plain);
    }
    for (int64_t c = whole; c < channels; ++c) {
      for (int64_t r = first; r < last; ++r) {
        const double passed = widen(out[r * channels + c]) > 0 ? double(widen(grad[r * channels + c])) : 0.0;
        for (int64_t j = 0; j < 3; ++j) sums[j * channels + c] += passed * double(points[3 * r + j]);
        sums[3 * channels + c] += passed;
      }
    }
  }
}

// Adds `factor` times `from` to `to`.
template <typename R>
inline void add_scaled(R factor, const R* __restrict from, int64_t channels, R* __restrict to) {
  for (int64_t c = 0; c < channels; ++c) to[c] += factor * from[c];
}

// Adds the gradient of one group's peak to its rows, (k, channels).
template <typename R>
void peak_rows(const Peak<R>& peak, int64_t group, int64_t channels, R* tile) {
  const R* grad = peak.grad + group * peak.outputs;
  const uint8_t* winners = peak.winners + group * peak.outputs;
  for (int64_t d = 0; d < peak.outputs; ++d) add_scaled(grad[d], peak.weight + d * channels, channels, tile + winners[d] * channels);
}

// Adds the gradient of the weight of one group's peak over the rows (k, channels).
template <typename R>
void peak_weight(const Peak<R>& peak, int64_t group, const R* rows, int64_t channels, R* grad_weight) {
  const R* grad = peak.grad + group * peak.outputs;
  const uint8_t* winners = peak.winners + group * peak.outputs;
  for (int64_t d = 0; d < peak.outputs; ++d) add_scaled(grad[d], rows + winners[d] * channels, channels, grad_weight + d * channels);
}

template <typename S>
void spread(const Peak<Real<S>>& peak, const S* rows, int64_t groups, int64_t k, int64_t channels, S* grad_rows, Real<S>* grad_weight,
            Real<S>* scratch) {
  const int64_t size = k * channels;
  for (int64_t g = 0; g < groups; ++g) {
    const S* own = rows + g * size;
    S* to = grad_rows + g * size;
    for (int64_t i = 0; i < size; ++i) scratch[i] = widen(own[i]);
    peak_weight(peak, g, scratch, channels, grad_weight);
    for (int64_t i = 0; i < size; ++i) scratch[i] = widen(to[i]);
    peak_rows(peak, g, channels, scratch);
    for (int64_t i = 0; i < size; ++i) narrow(scratch[i], to[i]);
  }
}

// Adds to sums (2, channels), where value > 0, flow and flow * (x - mean) of the rows of one group.
template <typename S>
inline void add_passed(const S* x, const Real<S>* value, const Real<S>* flow, const Real<S>* mean, int64_t k, int64_t channels,
                       double* sums) {
  const int64_t whole = channels / kEight * kEight;
  for (int64_t c = 0; c < whole; c += kEight) {
    const D8 origin = exact(load8(mean + c));
    D8 plain = {}, product = {};
    for (int64_t at = c; at < k * channels; at += channels) {
      const D8 passed = exact(where_positive(load8(value + at), load8(flow + at)));
      plain += passed, product += passed * (exact(load8(x + at)) - origin);
    }
    add8(sums + c, plain), add8(sums + channels + c, product);
  }
  for (int64_t c = whole; c < channels; ++c) {
    for (int64_t at = c; at < k * channels; at += channels) {
      const double passed = value[at] > 0 ? double(flow[at]) : 0.0;
      sums[c] += passed, sums[channels + c] += passed * (double(widen(x[at])) - double(mean[c]));
    }
  }
}

template <typename S>
void peak_sums(const Peak<Real<S>>& peak, const S* x, const Norm<Real<S>>& norm, int64_t groups, int64_t k, int64_t channels,
               double* sums, Real<S>* grad_weight, Real<S>* scratch) {
  using R = Real<S>;
  const int64_t size = k * channels;
  R *values = scratch, *flow = scratch + size;
  for (int64_t g = 0; g < groups; ++g) {
    const S* own = x + g * size;
    for (int64_t m = 0; m < k; ++m) norm_relu_row(own + m * channels, norm, channels, values + m * channels);
    for (int64_t i = 0; i < size; ++i) flow[i] = 0;
    peak_rows(peak, g, channels, flow);
    peak_weight(peak, g, values, channels, grad_weight);
    add_passed(own, values, flow, norm.mean, k, channels, sums);
  }
}

// One row of peak_backward.
template <typename S>
inline void peak_backward_row(const S* __restrict row, const Real<S>* __restrict flow, const Norm<Real<S>>& norm,
                              const Real<S>* __restrict slope, const Real<S>* __restrict offset, int64_t channels, S* __restrict to,
                              Real<S>* __restrict total) {
  using R = Real<S>;
  const R *__restrict mean = norm.mean, *__restrict scale = norm.scale, *__restrict shift = norm.shift;
  for (int64_t c = 0; c < channels; ++c) {
    const R centred = widen(row[c]) - mean[c], scaled = flow[c] * scale[c], normed = centred * scale[c] + shift[c];
    const R value = (normed > 0 ? scaled : R(0)) + (slope[c] * centred + offset[c]);
    total[c] += value;
    narrow(value, to[c]);
  }
}

template <typename S>
void peak_backward(const Peak<Real<S>>& peak, const S* x, const Norm<Real<S>>& norm, const Real<S>* slope, const Real<S>* offset,
                   int64_t groups, int64_t k, int64_t channels, S* out, Real<S>* group_sums, Real<S>* scratch) {
  using R = Real<S>;
  const int64_t size = k * channels;
  for (int64_t g = 0; g < groups; ++g) {
    const S* own = x + g * size;
    R* total = group_sums + g * channels;
    for (int64_t i = 0; i < size; ++i) scratch[i] = 0;
    for (int64_t c = 0; c < channels; ++c) total[c] = 0;
    peak_rows(peak, g, channels, scratch);
    for (int64_t m = 0; m < k; ++m) {
      const int64_t at = m * channels;
      peak_backward_row(own + at, scratch + at, norm, slope, offset, channels, out + g * size + at, total);
    }
  }
}

template <typename S>
constexpr PatchKernels<S> kPatchTable{group_max<S>, join<S>,      norm_relu<S>, lift<S>,
                                      lift_sums<S>, spread<S>, peak_sums<S>, peak_backward<S>};

}  // namespace

template <> const PatchKernels<float>& patch_table<float>() { return kPatchTable<float>; }
template <> const PatchKernels<double>& patch_table<double>() { return kPatchTable<double>; }
template <> const PatchKernels<Bf16>& patch_table<Bf16>() { return kPatchTable<Bf16>; }

}  // namespace m2ae::M2AE_ISA
