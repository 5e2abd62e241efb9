// Rows of a matrix: sums over fixed pieces of rows, shared out among the threads and added up in order, so that the result does not
// depend on the number of threads, and what a norm with a ReLU behind it needs on the way back.
#include "rows.h"

#include <algorithm>
#include <vector>

#include "storage.h"

namespace m2ae {
namespace {

constexpr int64_t kPiece = 2048;  // rows in a unit of work

// Returns sums (2, C) in double precision of what work(first row, rows, sums of the piece) adds for each piece of `rows`.
template <typename F>
Tensor sum_pieces(const Tensor& rows, F&& work) {
  const int64_t R = rows.size(0), C = rows.size(1), pieces = (R + kPiece - 1) / kPiece;
  Tensor out = at::zeros({2, C}, rows.options().dtype(at::kDouble));
  std::vector<double> partial(pieces * 2 * C, 0.0);
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      work(piece * kPiece, std::min(kPiece, R - piece * kPiece), partial.data() + piece * 2 * C);
  });
  double* total = out.mutable_data_ptr<double>();
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < 2 * C; ++i) total[i] += partial[piece * 2 * C + i];
  return out;
}

Tensor row_sums_cpu(const Tensor& x, const Tensor& y, const Tensor& shift) {
  const Tensor a = storable(x), b = storable(y), origin = shift.to(at::kDouble).contiguous();
  const int64_t C = a.size(1);
  return by_storage(a, "row_sums", [&](auto tag) {
    using S = decltype(tag);
    return sum_pieces(a, [&](int64_t first, int64_t count, double* sums) {
      row_kernels<S>().sums(read<S>(a) + first * C, read<S>(b) + first * C, read<double>(origin), count, C, sums);
    });
  });
}

// Small operands in the type that is computed with.
struct Operands {
  Tensor mean, scale, shift;

  Operands(const Tensor& like, const Tensor& m, const Tensor& s, const Tensor& b)
      : mean(m.to(compute_type(like)).contiguous()), scale(s.to(compute_type(like)).contiguous()), shift(b.to(compute_type(like)).contiguous()) {}

  template <typename R>
  Norm<R> norm() const {
    return {read<R>(mean), read<R>(scale), read<R>(shift)};
  }
};

Tensor norm_relu_sums_cpu(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift) {
  const Tensor rows = storable(x), flow = storable(grad);
  const Operands operands(rows, mean, scale, shift);
  const int64_t C = rows.size(1);
  return by_storage(rows, "norm_relu_sums", [&](auto tag) {
    using S = decltype(tag);
    return sum_pieces(rows, [&](int64_t first, int64_t count, double* sums) {
      row_kernels<S>().norm_relu_sums(read<S>(flow) + first * C, read<S>(rows) + first * C, operands.norm<Real<S>>(), count, C, sums);
    });
  });
}

Tensor norm_relu_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift,
                              const Tensor& slope, const Tensor& offset) {
  const Tensor rows = storable(x), flow = storable(grad);
  const Operands operands(rows, mean, scale, shift);
  const Tensor slopes = slope.to(compute_type(rows)).contiguous(), offsets = offset.to(compute_type(rows)).contiguous();
  const int64_t R = rows.size(0), C = rows.size(1);
  Tensor out = at::empty({R, C}, rows.options());
  by_storage(rows, "norm_relu_backward", [&](auto tag) {
    using S = decltype(tag);
    at::parallel_for(0, R, grain(C / 8), [&](int64_t begin, int64_t end) {
      const int64_t at = begin * C;
      row_kernels<S>().norm_relu_backward(read<S>(flow) + at, read<S>(rows) + at, operands.norm<Real<S>>(), read<Real<S>>(slopes),
                                          read<Real<S>>(offsets), end - begin, C, write<S>(out) + at);
    });
  });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("row_sums", row_sums_cpu);
  m.impl("norm_relu_sums", norm_relu_sums_cpu);
  m.impl("norm_relu_backward", norm_relu_backward_cpu);
}

}  // namespace m2ae
