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

template <typename S> const RowKernels<S>& row_kernels();
template <> const RowKernels<float>& row_kernels<float>();
template <> const RowKernels<double>& row_kernels<double>();
template <> const RowKernels<Bf16>& row_kernels<Bf16>();

#define M2AE_DECLARE_ROW_TABLES(isa)                             \
  namespace isa {                                                \
  template <typename S> const RowKernels<S>& row_table();        \
  template <> const RowKernels<float>& row_table<float>();       \
  template <> const RowKernels<double>& row_table<double>();     \
  template <> const RowKernels<Bf16>& row_table<Bf16>();         \
  }
M2AE_DECLARE_ROW_TABLES(base)
M2AE_DECLARE_ROW_TABLES(avx2)
M2AE_DECLARE_ROW_TABLES(avx512)

}  // namespace m2ae
