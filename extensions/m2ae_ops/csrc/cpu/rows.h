// What the kernels for the rows of a matrix offer: plain functions on a stretch of rows, behind a table of pointers. The rule about
// headers of kernels.h holds here too.
#pragma once

#include "patches.h"

namespace m2ae {

template <typename S>
struct RowKernels {
  using R = Real<S>;
  // Adds the sums of y and of y * (x - shift) over the rows of (rows, channels) matrices to out (2, channels).
  void (*sums)(const S* x, const S* y, const double* shift, int64_t rows, int64_t channels, double* out);
  // With g the gradient before the ReLU of relu(norm(x)): adds the sums of g and of g * (x - mean) to out (2, channels).
  void (*norm_relu_sums)(const S* grad, const S* x, const Norm<R>& norm, int64_t rows, int64_t channels, double* out);
  // out = g * norm.scale + slope * (x - mean) + offset.
  void (*norm_relu_backward)(const S* grad, const S* x, const Norm<R>& norm, const R* slope, const R* offset, int64_t rows,
                             int64_t channels, S* out);
};

M2AE_DECLARE_TABLE(RowKernels<float>)
M2AE_DECLARE_TABLE(RowKernels<double>)
M2AE_DECLARE_TABLE(RowKernels<Bf16>)

template <typename S> const RowKernels<S>& row_kernels() { return of_processor<RowKernels<S>>(); }

}  // namespace m2ae
