// Sums over the rows of a matrix in double precision, to the bit as on the CPU: pieces of rows from first to last, then the
// pieces in order.
#include "common.cuh"

namespace m2ae {
namespace {

constexpr int64_t kPiece = 2048;  // rows, as on the CPU
constexpr int kThreads = 128;

// partial (pieces, 2, C): a thread per piece and channel.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    piece_kernel(const S* x, const S* y, const double* shift, int64_t rows, int64_t channels, int64_t units, double* partial) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= units) return;
  const int64_t piece = unit / channels, c = unit % channels, first = piece * kPiece;
  const int64_t last = first + kPiece < rows ? first + kPiece : rows;
  const double origin = shift[c];
  double plain = 0, product = 0;
#pragma unroll 8
  for (int64_t r = first; r < last; ++r) {
    const double value = double(Compute<S>(y[r * channels + c]));
    plain += value;
    product += value * (double(Compute<S>(x[r * channels + c])) - origin);
  }
  partial[piece * 2 * channels + c] = plain;
  partial[(piece * 2 + 1) * channels + c] = product;
}

__global__ void __launch_bounds__(kThreads) total_kernel(const double* partial, int64_t pieces, int64_t width, double* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= width) return;
  double total = 0;
#pragma unroll 8
  for (int64_t piece = 0; piece < pieces; ++piece) total += partial[piece * width + i];
  out[i] = total;
}

Tensor row_sums_cuda(const Tensor& x, const Tensor& y, const Tensor& shift) {
  const CUDAGuard guard(x.device());
  const bool as_they_are = x.scalar_type() == y.scalar_type() && x.is_floating_point();
  const Tensor a = as_they_are ? x.contiguous() : x.to(at::kDouble).contiguous();
  const Tensor b = as_they_are ? y.contiguous() : y.to(at::kDouble).contiguous(), origin = shift.to(at::kDouble).contiguous();
  const int64_t R = a.size(0), C = a.size(1), pieces = ceil_div(R, kPiece);
  Tensor partial = at::empty({pieces, 2, C}, origin.options()), out = at::empty({2, C}, origin.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "m2ae::row_sums", [&] {
    launch(piece_kernel<scalar_t>, ceil_div(pieces * C, kThreads), kThreads, 0, a.const_data_ptr<scalar_t>(),
           b.const_data_ptr<scalar_t>(), origin.const_data_ptr<double>(), R, C, pieces * C, partial.mutable_data_ptr<double>());
  });
  launch(total_kernel, ceil_div(2 * C, kThreads), kThreads, 0, partial.const_data_ptr<double>(), pieces, 2 * C,
         out.mutable_data_ptr<double>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) { m.impl("row_sums", row_sums_cuda); }

}  // namespace m2ae
