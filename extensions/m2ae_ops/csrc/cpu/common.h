// What the files that talk to PyTorch share.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>
#include <memory>
#include <tuple>

#include "kernels.h"

namespace m2ae {

using at::Tensor;

// Half precision is computed in float32, float64 in float64.
inline at::ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline Tensor to_compute(const Tensor& t) { return t.to(compute_type(t)).contiguous(); }

// Memory for one kernel call, aligned to 64 bytes and not initialised.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_(new char[bytes + 64]) {}
  void* get() const { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t(63)); }

 private:
  std::unique_ptr<char[]> memory_;
};

// Items of work that are worth a thread, given what one of them costs (in roughly nanoseconds).
inline int64_t grain(int64_t cost) { return std::max<int64_t>(1, 20000 / std::max<int64_t>(1, cost)); }

}  // namespace m2ae
