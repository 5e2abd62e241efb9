// Rows of a matrix: sums in double precision, and the way back through a norm and a ReLU; see rows.h.
#pragma once

#include "rows.h"
#include "strips_impl.h"
#include "tiles_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

// Visits rows in blocks that stay in the cache, and each block by channels: strip(Number<N>, first row, rows, channel) for N times eight
// channels, single(first row, rows, channel) for those left over.
template <typename F, typename G>
inline void in_strips(int64_t rows, int64_t channels, F&& strip, G&& single) {
  constexpr int64_t kBlock = 128;
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t count = at_most(kBlock, rows - first);
    int64_t c = 0;
    for (; c + 4 * kEight <= channels; c += 4 * kEight) strip(Number<4>(), first, count, c);
    for (; c + kEight <= channels; c += kEight) strip(Number<1>(), first, count, c);
    for (; c < channels; ++c) single(first, count, c);
  }
}

// Sums of N times eight channels, from memory and back into it.
template <int N>
struct Sums {
  D8 plain[N], product[N];

  Sums(const double* out, int64_t channels) {
    for (int n = 0; n < N; ++n) plain[n] = copy8<D8>(out + n * kEight), product[n] = copy8<D8>(out + channels + n * kEight);
  }
  void store(double* out, int64_t channels) const {
    for (int n = 0; n < N; ++n) {
      __builtin_memcpy(out + n * kEight, plain + n, sizeof(D8));
      __builtin_memcpy(out + channels + n * kEight, product + n, sizeof(D8));
    }
  }
};

template <typename S>
void row_sums(const S* x, const S* y, const double* shift, int64_t rows, int64_t channels, double* out) {
  const auto strip = [&](auto number, int64_t first, int64_t count, int64_t c) {
    constexpr int N = decltype(number)::value;
    Sums<N> sums(out + c, channels);
    D8 origin[N];
    for (int n = 0; n < N; ++n) origin[n] = copy8<D8>(shift + c + n * kEight);
    for (int64_t at = first * channels + c, r = 0; r < count; ++r, at += channels) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const D8 value = exact(load8(y + at + n * kEight));
        sums.plain[n] += value, sums.product[n] += value * (exact(load8(x + at + n * kEight)) - origin[n]);
      }
    }
    sums.store(out + c, channels);
  };
  in_strips(rows, channels, strip, [&](int64_t first, int64_t count, int64_t c) {
    for (int64_t at = first * channels + c, r = 0; r < count; ++r, at += channels) {
      const double value = widen(y[at]);
      out[c] += value, out[channels + c] += value * (double(widen(x[at])) - shift[c]);
    }
  });
}

template <typename S>
void norm_relu_sums(const S* grad, const S* x, const Norm<Real<S>>& norm, int64_t rows, int64_t channels, double* out) {
  const auto strip = [&](auto number, int64_t first, int64_t count, int64_t c) {
    constexpr int N = decltype(number)::value;
    Sums<N> sums(out + c, channels);
    decltype(load8(norm.mean)) mean[N], scale[N], shift[N];
    for (int n = 0; n < N; ++n) {
      const int64_t here = c + n * kEight;
      mean[n] = load8(norm.mean + here), scale[n] = load8(norm.scale + here), shift[n] = load8(norm.shift + here);
    }
    for (int64_t at = first * channels + c, r = 0; r < count; ++r, at += channels) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const auto centered = load8(x + at + n * kEight) - mean[n];
        const D8 passed = exact(where_positive(centered * scale[n] + shift[n], load8(grad + at + n * kEight)));
        sums.plain[n] += passed, sums.product[n] += passed * exact(centered);
      }
    }
    sums.store(out + c, channels);
  };
  in_strips(rows, channels, strip, [&](int64_t first, int64_t count, int64_t c) {
    for (int64_t at = first * channels + c, r = 0; r < count; ++r, at += channels) {
      const auto centered = widen(x[at]) - norm.mean[c];
      const double passed = centered * norm.scale[c] + norm.shift[c] > 0 ? widen(grad[at]) : 0;
      out[c] += passed, out[channels + c] += passed * double(centered);
    }
  });
}

template <typename S>
inline void norm_relu_backward_row(const S* __restrict grad, const S* __restrict x, const Norm<Real<S>>& norm,
                                   const Real<S>* __restrict slope, const Real<S>* __restrict offset, int64_t channels, S* __restrict out) {
  using R = Real<S>;
  const R *__restrict mean = norm.mean, *__restrict scale = norm.scale, *__restrict shift = norm.shift;
  for (int64_t c = 0; c < channels; ++c) {
    const R centered = widen(x[c]) - mean[c], flow = widen(grad[c]);
    const R passed = centered * scale[c] + shift[c] > 0 ? flow : R(0);
    narrow(passed * scale[c] + (slope[c] * centered + offset[c]), out[c]);
  }
}

template <typename S>
void norm_relu_backward(const S* grad, const S* x, const Norm<Real<S>>& norm, const Real<S>* slope, const Real<S>* offset, int64_t rows,
                        int64_t channels, S* out) {
  for (int64_t at = 0; at < rows * channels; at += channels) norm_relu_backward_row(grad + at, x + at, norm, slope, offset, channels, out + at);
}

template <typename S>
constexpr RowKernels<S> kRowTable{row_sums<S>, norm_relu_sums<S>, norm_relu_backward<S>};

}  // namespace

template <> const RowKernels<float>& table<RowKernels<float>>() { return kRowTable<float>; }
template <> const RowKernels<double>& table<RowKernels<double>>() { return kRowTable<double>; }
template <> const RowKernels<Bf16>& table<RowKernels<Bf16>>() { return kRowTable<Bf16>; }

}  // namespace m2ae::M2AE_ISA
