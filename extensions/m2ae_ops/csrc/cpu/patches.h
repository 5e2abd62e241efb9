// What the kernels for members of patches offer: plain functions on a stretch of whole groups, behind a table of pointers. The rule
// about headers of kernels.h holds here too.
//
// Rows are the members, k of them a group; `S` is how they are stored, `Real<S>` what is computed with. The member that holds the
// maximum of a channel over its group is the winner of this channel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace m2ae {

struct Bf16 {  // the upper half of a float32
  uint16_t bits;
};

template <typename S> struct RealOf { using type = S; };
template <> struct RealOf<Bf16> { using type = float; };
template <typename S> using Real = typename RealOf<S>::type;

// Normalisation of a channel: (x - mean) * scale + shift.
template <typename R>
struct Norm {
  const R *mean, *scale, *shift;
};

// tokens = max over the group of rows * weight^T, from the side of its gradient: `grad` and `winners` are (groups, outputs),
// `weight` is (outputs, channels). The winners once more, by member: `order` (groups, outputs) lists the outputs that member 0 has won,
// then those of member 1 and so on, each in rising order, and `ends` (groups, k) says where those of a member end.
template <typename R>
struct Peak {
  const R* grad;
  const uint8_t* winners;
  const int32_t *order, *ends;
  const R* weight;
  int64_t outputs;
};

constexpr int64_t kPeakStrip = 64;  // channels that the kernels of a peak work on at a time

// Numbers of scratch that the kernels of a peak ask for.
inline int64_t peak_scratch(int64_t outputs, int64_t k) { return (outputs + 3 * k) * kPeakStrip; }

template <typename S>
struct PatchKernels {
  using R = Real<S>;
  void (*group_max)(const S* x, int64_t groups, int64_t k, int64_t channels, S* values, uint8_t* winners);
  // x += group, in place; adds the sums of x and of its square to sums (2, channels).
  void (*join)(S* x, const R* group, int64_t groups, int64_t k, int64_t channels, double* sums);
  void (*norm_relu)(const S* x, const Norm<R>& norm, int64_t rows, int64_t channels, S* out);
  // relu(points * weight + shift) of (rows, 3) and weight (3, channels).
  void (*lift)(const R* points, const R* weight, const R* shift, int64_t rows, int64_t channels, S* out);
  // Adds the sums over rows of grad * (x, y, z, 1) where out > 0 to sums (4, channels).
  void (*lift_sums)(const S* grad, const S* out, const R* points, int64_t rows, int64_t channels, double* sums);
  // Adds the gradient of a peak to grad_rows and to grad_weight; `peak_scratch` numbers of scratch, as below.
  void (*spread)(const Peak<R>& peak, const S* rows, int64_t groups, int64_t k, int64_t channels, S* grad_rows, R* grad_weight, R* scratch);
  // With g the gradient at norm(x) of the peak of relu(norm(x)): adds the sums of g and of g * (x - mean) to sums (2, channels), and
  // to grad_weight.
  void (*peak_sums)(const Peak<R>& peak, const S* x, const Norm<R>& norm, int64_t groups, int64_t k, int64_t channels, double* sums,
                    R* grad_weight, R* scratch);
  // out = g * norm.scale + slope * (x - mean) + offset, and its sum over each group.
  void (*peak_backward)(const Peak<R>& peak, const S* x, const Norm<R>& norm, const R* slope, const R* offset, int64_t groups, int64_t k,
                        int64_t channels, S* out, R* group_sums, R* scratch);
};

M2AE_DECLARE_TABLE(PatchKernels<float>)
M2AE_DECLARE_TABLE(PatchKernels<double>)
M2AE_DECLARE_TABLE(PatchKernels<Bf16>)

template <typename S> const PatchKernels<S>& patch_kernels() { return of_processor<PatchKernels<S>>(); }

}  // namespace m2ae
