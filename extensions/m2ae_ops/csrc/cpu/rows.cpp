// Sums over the rows of a matrix: fixed pieces of rows, shared out among the threads and added up in order, so that the
// result does not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "common.h"

namespace m2ae {
namespace {

constexpr int64_t kPiece = 2048;  // rows in a unit of work

Tensor row_sums_cpu(const Tensor& x, const Tensor& y, const Tensor& shift) {
  const Tensor a = to_compute(x), b = to_compute(y), origin = shift.to(at::kDouble).contiguous();
  const int64_t R = a.size(0), C = a.size(1), pieces = (R + kPiece - 1) / kPiece;
  Tensor out = at::zeros({2, C}, a.options().dtype(at::kDouble));
  std::vector<double> partial(pieces * 2 * C, 0.0);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "m2ae::row_sums", [&] {
    const scalar_t *xs = a.const_data_ptr<scalar_t>(), *ys = b.const_data_ptr<scalar_t>();
    at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t first = piece * kPiece, rows = std::min(kPiece, R - first);
        kernels<scalar_t>().row_sums(xs + first * C, ys + first * C, origin.const_data_ptr<double>(), rows, C, partial.data() + piece * 2 * C);
      }
    });
  });
  double* total = out.mutable_data_ptr<double>();
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < 2 * C; ++i) total[i] += partial[piece * 2 * C + i];
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) { m.impl("row_sums", row_sums_cpu); }

}  // namespace m2ae
