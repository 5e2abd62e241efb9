// Kernels for members of patches; see patches.h. Where no strips are used, loops over channels are left to the compiler.
#pragma once

#include "patches.h"
#include "strips_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

// The winners of one strip of a group; `best` receives their values.
template <typename S>
inline void strip_max(const S* from, int64_t k, int64_t channels, int64_t width, Strip<Real<S>>& best, uint8_t* winners) {
  using T = Strip<Real<S>>;
  using Mask = decltype(best.part[0] > best.part[0]);
  Mask winner[T::kParts] = {};
  load_strip(from, width, best);
  for (int m = 1; m < k; ++m) {
    T value;
    load_strip(from + m * channels, width, value);
    const Mask member = Mask{} + m;
    for (int64_t p = 0; p < T::kParts; ++p) {
      const auto v = value.part[p], b = best.part[p];
      const Mask more = (v > b) | ((v != v) & (b == b));  // the first of several NaN wins
      best.part[p] = more ? v : b;
      winner[p] = more ? member : winner[p];
    }
  }
  for (int64_t i = 0; i < width; ++i) winners[i] = uint8_t(winner[i / T::kPart][i % T::kPart]);
}

template <typename S>
void group_max(const S* x, int64_t groups, int64_t k, int64_t channels, S* values, uint8_t* winners) {
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; c += kPeakStrip) {
      const int64_t width = at_most(kPeakStrip, channels - c), at = g * channels + c;
      Strip<Real<S>> best;
      strip_max(x + g * k * channels + c, k, channels, width, best, winners + at);
      store_strip(best, width, values + at);
    }
  }
}

// Adds `add` to the rows of one group, channels c..c + 8 * N, and sums up what is stored.
template <int N, typename S>
inline void join_columns(S* row, const Real<S>* add, int64_t k, int64_t channels, D8* plain, D8* square) {
  for (int64_t m = 0; m < k; ++m, row += channels) {
    for (int n = 0; n < N; ++n) {
      const D8 value = exact(store8(load8(row + n * kEight) + load8(add + n * kEight), row + n * kEight));
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

// Adds `factor` times the strip at `from` to `to`.
template <typename R>
inline void add_scaled(R factor, const R* from, Strip<R>& to) {
  Strip<R> value;
  load_strip(from, kPeakStrip, value);
  for (int64_t p = 0; p < Strip<R>::kParts; ++p) to.part[p] += factor * value.part[p];
}

// A strip of the norm.
template <typename R>
struct NormStrip {
  Strip<R> mean, scale, shift;

  NormStrip(const Norm<R>& norm, int64_t c, int64_t width) {
    load_strip(norm.mean + c, width, mean), load_strip(norm.scale + c, width, scale), load_strip(norm.shift + c, width, shift);
  }
};

// Copies channels c..c + width of the weight side by side; with a row's stride they would fall on few lines of the cache.
template <typename R>
void pack_weight(const Peak<R>& peak, int64_t channels, int64_t c, int64_t width, R* packed) {
  for (int64_t d = 0; d < peak.outputs; ++d) {
    Strip<R> row;
    load_strip(peak.weight + d * channels + c, width, row), store_strip(row, kPeakStrip, packed + d * kPeakStrip);
  }
}

// Adds the gradient of one group's peak at a member's row, from the packed weight.
template <typename R>
inline void add_flow(const Peak<R>& peak, int64_t group, int64_t member, int64_t k, const R* packed, Strip<R>& to) {
  const R* grad = peak.grad + group * peak.outputs;
  const int32_t *order = peak.order + group * peak.outputs, *ends = peak.ends + group * k;
  for (int32_t i = member ? ends[member - 1] : 0; i < ends[member]; ++i) add_scaled(grad[order[i]], packed + order[i] * kPeakStrip, to);
}

// Adds the gradient of a strip of the peak's weight over all groups; values(group, to) writes the rows' strips, (k, kPeakStrip).
template <typename R, typename F>
void peak_weight(const Peak<R>& peak, int64_t groups, int64_t k, int64_t channels, int64_t c, int64_t width, R* scratch, R* grad_weight,
                 F&& values) {
  R *sum = scratch, *rows = scratch + peak.outputs * kPeakStrip;
  for (int64_t i = 0; i < peak.outputs * kPeakStrip; ++i) sum[i] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    values(g, rows);
    const R* grad = peak.grad + g * peak.outputs;
    const uint8_t* winners = peak.winners + g * peak.outputs;
    for (int64_t d = 0; d < peak.outputs; ++d) {
      Strip<R> total;
      load_strip(sum + d * kPeakStrip, kPeakStrip, total);
      add_scaled(grad[d], rows + winners[d] * kPeakStrip, total);
      store_strip(total, kPeakStrip, sum + d * kPeakStrip);
    }
  }
  for (int64_t d = 0; d < peak.outputs; ++d)
    for (int64_t i = 0; i < width; ++i) grad_weight[d * channels + c + i] += sum[d * kPeakStrip + i];
}

template <typename S>
void spread(const Peak<Real<S>>& peak, const S* rows, int64_t groups, int64_t k, int64_t channels, S* grad_rows, Real<S>* grad_weight,
            Real<S>* scratch) {
  using R = Real<S>;
  for (int64_t c = 0; c < channels; c += kPeakStrip) {
    const int64_t width = at_most(kPeakStrip, channels - c);
    pack_weight(peak, channels, c, width, scratch);
    for (int64_t r = 0; r < groups * k; ++r) {
      Strip<R> flow;
      load_strip(grad_rows + r * channels + c, width, flow);
      add_flow(peak, r / k, r % k, k, scratch, flow);
      store_strip(flow, width, grad_rows + r * channels + c);
    }
    peak_weight(peak, groups, k, channels, c, width, scratch, grad_weight, [&](int64_t g, R* to) {
      for (int64_t m = 0; m < k; ++m) {
        Strip<R> value;
        load_strip(rows + (g * k + m) * channels + c, width, value), store_strip(value, kPeakStrip, to + m * kPeakStrip);
      }
    });
  }
}

// Adds to sums (2, kPeakStrip), where normed > 0, flow and flow * (x - mean) of the rows of one group, each (k, kPeakStrip).
template <typename R>
inline void add_passed(const R* x, const R* normed, const R* flow, const R* mean, int64_t k, double* sums) {
  for (int64_t c = 0; c < kPeakStrip; c += kEight) {
    const D8 origin = exact(load8(mean + c));
    D8 plain = {}, product = {};
    for (int64_t at = c; at < k * kPeakStrip; at += kPeakStrip) {
      const D8 passed = exact(where_positive(load8(normed + at), load8(flow + at)));
      plain += passed, product += passed * (exact(load8(x + at)) - origin);
    }
    add8(sums + c, plain), add8(sums + kPeakStrip + c, product);
  }
}

// One strip of the sums of `peak_sums`.
template <typename S>
void peak_sums_strip(const Peak<Real<S>>& peak, const S* x, const NormStrip<Real<S>>& norm, int64_t groups, int64_t k, int64_t channels,
                     int64_t width, const Real<S>* packed, Real<S>* scratch, double* sums) {
  using R = Real<S>;
  R *plain = scratch, *normed = plain + k * kPeakStrip, *flows = normed + k * kPeakStrip;
  R mean[kPeakStrip];
  store_strip(norm.mean, kPeakStrip, mean);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t m = 0; m < k; ++m) {
      Strip<R> value, flow = {};
      load_strip(x + (g * k + m) * channels, width, value), store_strip(value, kPeakStrip, plain + m * kPeakStrip);
      for (int64_t p = 0; p < Strip<R>::kParts; ++p)
        value.part[p] = (value.part[p] - norm.mean.part[p]) * norm.scale.part[p] + norm.shift.part[p];
      store_strip(value, kPeakStrip, normed + m * kPeakStrip);
      add_flow(peak, g, m, k, packed, flow);
      store_strip(flow, kPeakStrip, flows + m * kPeakStrip);
    }
    add_passed(plain, normed, flows, mean, k, sums);
  }
}

template <typename S>
void peak_sums(const Peak<Real<S>>& peak, const S* x, const Norm<Real<S>>& norm, int64_t groups, int64_t k, int64_t channels,
               double* sums, Real<S>* grad_weight, Real<S>* scratch) {
  using R = Real<S>;
  for (int64_t c = 0; c < channels; c += kPeakStrip) {
    const int64_t width = at_most(kPeakStrip, channels - c);
    const NormStrip<R> own(norm, c, width);
    double found[2 * kPeakStrip] = {};
    pack_weight(peak, channels, c, width, scratch);
    peak_sums_strip(peak, x + c, own, groups, k, channels, width, scratch, scratch + peak.outputs * kPeakStrip, found);
    for (int64_t i = 0; i < width; ++i) sums[c + i] += found[i], sums[channels + c + i] += found[kPeakStrip + i];
    peak_weight(peak, groups, k, channels, c, width, scratch, grad_weight, [&](int64_t g, R* to) {
      for (int64_t m = 0; m < k; ++m) {
        Strip<R> value;
        load_strip(x + (g * k + m) * channels + c, width, value);
        for (int64_t p = 0; p < Strip<R>::kParts; ++p) {
          const auto normed = (value.part[p] - own.mean.part[p]) * own.scale.part[p] + own.shift.part[p];
          const auto closed = normed <= 0;
          value.part[p] = (typename Strip<R>::Part)(~closed & (decltype(closed))normed);  // NaN stays NaN
        }
        store_strip(value, kPeakStrip, to + m * kPeakStrip);
      }
    });
  }
}

template <typename S>
void peak_backward(const Peak<Real<S>>& peak, const S* x, const Norm<Real<S>>& norm, const Real<S>* slope, const Real<S>* offset,
                   int64_t groups, int64_t k, int64_t channels, S* out, Real<S>* group_sums, Real<S>* scratch) {
  using R = Real<S>;
  for (int64_t c = 0; c < channels; c += kPeakStrip) {
    const int64_t width = at_most(kPeakStrip, channels - c);
    const NormStrip<R> own(norm, c, width);
    Strip<R> incline, rest;
    load_strip(slope + c, width, incline), load_strip(offset + c, width, rest);
    pack_weight(peak, channels, c, width, scratch);
    for (int64_t g = 0; g < groups; ++g) {
      Strip<R> total = {};
      for (int64_t m = 0; m < k; ++m) {
        const int64_t at = (g * k + m) * channels + c;
        Strip<R> value, flow = {};
        add_flow(peak, g, m, k, scratch, flow);
        load_strip(x + at, width, value);
        for (int64_t p = 0; p < Strip<R>::kParts; ++p) {
          const auto centred = value.part[p] - own.mean.part[p], normed = centred * own.scale.part[p] + own.shift.part[p];
          value.part[p] = where_positive(normed, flow.part[p] * own.scale.part[p]) + (incline.part[p] * centred + rest.part[p]);
          total.part[p] += value.part[p];
        }
        store_strip(value, width, out + at);
      }
      store_strip(total, width, group_sums + g * channels + c);
    }
  }
}

template <typename S>
constexpr PatchKernels<S> kPatchTable{group_max<S>, join<S>,      norm_relu<S>, lift<S>,
                                      lift_sums<S>, spread<S>, peak_sums<S>, peak_backward<S>};

}  // namespace

template <> const PatchKernels<float>& table<PatchKernels<float>>() { return kPatchTable<float>; }
template <> const PatchKernels<double>& table<PatchKernels<double>>() { return kPatchTable<double>; }
template <> const PatchKernels<Bf16>& table<PatchKernels<Bf16>>() { return kPatchTable<Bf16>; }

}  // namespace m2ae::M2AE_ISA
