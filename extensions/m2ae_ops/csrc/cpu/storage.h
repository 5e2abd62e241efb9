// Tensors of any floating dtype for kernels that read and write them as they are stored.
#pragma once

#include "common.h"
#include "patches.h"

namespace m2ae {

// float16 is computed in float32; the others have kernels of their own.
inline Tensor storable(const Tensor& t) { return (t.scalar_type() == at::kHalf ? t.to(at::kFloat) : t).contiguous(); }

template <typename F>
auto by_storage(const Tensor& t, const char* op, F&& run) {
  switch (t.scalar_type()) {
    case at::kFloat: return run(float());
    case at::kDouble: return run(double());
    case at::kBFloat16: return run(Bf16());
    default: TORCH_CHECK_VALUE(false, op, ": dtype ", t.scalar_type(), " has no kernel; use float32, bfloat16 or float64");
  }
}

template <typename S> const S* read(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
template <typename S> S* write(const Tensor& t) { return static_cast<S*>(t.mutable_data_ptr()); }

}  // namespace m2ae
