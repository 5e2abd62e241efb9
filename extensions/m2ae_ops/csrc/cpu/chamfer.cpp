// Chamfer distance: forward from two nearest-point searches; backward: a cloud pair belongs to one thread.
#include "common.h"
#include "nearest.h"

namespace m2ae {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_cpu(const Tensor& a, const Tensor& b) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  const auto indices = p.options().dtype(at::kLong);
  Tensor d1 = at::empty({B, n}, p.options()), d2 = at::empty({B, m}, p.options());
  Tensor i1 = at::empty({B, n}, indices), i2 = at::empty({B, m}, indices);
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer", [&] {
    nearest_both<scalar_t>(p, q, d1, i1, d2, i2);
  });
  return {d1, d2, i1, i2};
}

// Adds 2 * grad * (from[i] - to[idx[i]]) to the gradient of `from` and takes it off that of `to`.
template <typename T>
void add_pairs(const T* grad, const T* from, const T* to, const int64_t* idx, int64_t n, int64_t m, T* grad_from, T* grad_to) {
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_INDEX(idx[i] >= 0 && idx[i] < m, "chamfer_backward: index ", idx[i], " is outside 0..", m - 1);
    for (int c = 0; c < 3; ++c) {
      const T flow = 2 * grad[i] * (from[3 * i + c] - to[3 * idx[i] + c]);
      grad_from[3 * i + c] += flow;
      grad_to[3 * idx[i] + c] -= flow;
    }
  }
}

std::tuple<Tensor, Tensor> chamfer_backward_cpu(const Tensor& grad1, const Tensor& grad2, const Tensor& a, const Tensor& b,
                                                const Tensor& i1, const Tensor& i2) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const Tensor g1 = grad1.to(p.scalar_type()).contiguous(), g2 = grad2.to(p.scalar_type()).contiguous();
  const Tensor first = i1.contiguous(), second = i2.contiguous();
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  Tensor grad_a = at::zeros({B, n, 3}, p.options()), grad_b = at::zeros({B, m, 3}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_backward", [&] {
    const scalar_t *pa = p.const_data_ptr<scalar_t>(), *pb = q.const_data_ptr<scalar_t>();
    const scalar_t *ga = g1.const_data_ptr<scalar_t>(), *gb = g2.const_data_ptr<scalar_t>();
    const int64_t *ia = first.const_data_ptr<int64_t>(), *ib = second.const_data_ptr<int64_t>();
    scalar_t *to_a = grad_a.mutable_data_ptr<scalar_t>(), *to_b = grad_b.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B, grain(4 * (n + m)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t x = c * n, y = c * m;
        add_pairs(ga + x, pa + 3 * x, pb + 3 * y, ia + x, n, m, to_a + 3 * x, to_b + 3 * y);
        add_pairs(gb + y, pb + 3 * y, pa + 3 * x, ib + y, m, n, to_b + 3 * y, to_a + 3 * x);
      }
    });
  });
  return {grad_a.to(a.scalar_type()), grad_b.to(b.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("chamfer", chamfer_cpu);
  m.impl("chamfer_backward", chamfer_backward_cpu);
}

}  // namespace m2ae
