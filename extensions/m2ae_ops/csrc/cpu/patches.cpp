// Members of patches. Whole groups are shared out among the threads in pieces whose number depends on the sizes alone, and sums of
// pieces are added up in order, so that the result does not depend on the number of threads.
#include "patches.h"

#include <algorithm>
#include <vector>

#include "common.h"
#include "storage.h"

namespace m2ae {
namespace {

constexpr int64_t kRows = 1024;   // rows in a unit of work
constexpr int64_t kPieces = 64;   // pieces at most where each keeps a gradient of the weight

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Small operands are read in the type that is computed with.
Tensor as_real(const Tensor& t, const Tensor& like) { return t.to(compute_type(like)).contiguous(); }

// Runs work(first, count, piece) over `total` items in pieces of `size`.
template <typename F>
void in_pieces(int64_t total, int64_t size, F&& work) {
  at::parallel_for(0, ceil_divide(total, size), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) work(piece * size, std::min(size, total - piece * size), piece);
  });
}

// Adds up `pieces` partial results of out.numel() numbers each.
template <typename T>
void add_up(const std::vector<T>& partial, int64_t pieces, const Tensor& out) {
  T* total = write<T>(out);
  const int64_t size = out.numel();
  std::fill(total, total + size, T(0));
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < size; ++i) total[i] += partial[piece * size + i];
}

std::tuple<Tensor, Tensor> group_max_cpu(const Tensor& x, int64_t k) {
  const Tensor rows = storable(x);
  const int64_t C = rows.size(1), G = rows.size(0) / k;
  Tensor values = at::empty({G, C}, rows.options()), winners = at::empty({G, C}, rows.options().dtype(at::kByte));
  by_storage(rows, "group_max", [&](auto tag) {
    using S = decltype(tag);
    in_pieces(G, ceil_divide(kRows, k), [&](int64_t first, int64_t count, int64_t) {
      patch_kernels<S>().group_max(read<S>(rows) + first * k * C, count, k, C, write<S>(values) + first * C, write<uint8_t>(winners) + first * C);
    });
  });
  return {values.to(x.scalar_type()), winners};
}

Tensor join_rows_cpu(Tensor& x, const Tensor& group, int64_t k) {
  const Tensor rows = storable(x), add = as_real(group, rows);
  const int64_t C = rows.size(1), G = add.size(0), size = ceil_divide(kRows, k), pieces = ceil_divide(G, size);
  Tensor sums = at::empty({2, C}, rows.options().dtype(at::kDouble));
  std::vector<double> partial(pieces * 2 * C, 0.0);
  by_storage(rows, "join_rows", [&](auto tag) {
    using S = decltype(tag);
    in_pieces(G, size, [&](int64_t first, int64_t count, int64_t piece) {
      patch_kernels<S>().join(write<S>(rows) + first * k * C, read<Real<S>>(add) + first * C, count, k, C, partial.data() + piece * 2 * C);
    });
  });
  add_up(partial, pieces, sums);
  if (!rows.is_same(x)) x.copy_(rows);
  return sums;
}

Tensor norm_relu_cpu(const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift) {
  const Tensor rows = storable(x), m = as_real(mean, rows), s = as_real(scale, rows), b = as_real(shift, rows);
  const int64_t R = rows.size(0), C = rows.size(1);
  Tensor out = at::empty({R, C}, rows.options());
  by_storage(rows, "norm_relu", [&](auto tag) {
    using S = decltype(tag);
    const Norm<Real<S>> norm{read<Real<S>>(m), read<Real<S>>(s), read<Real<S>>(b)};
    in_pieces(R, kRows, [&](int64_t first, int64_t count, int64_t) {
      patch_kernels<S>().norm_relu(read<S>(rows) + first * C, norm, count, C, write<S>(out) + first * C);
    });
  });
  return out.to(x.scalar_type());
}

Tensor lift_rows_cpu(const Tensor& points, const Tensor& weight, const Tensor& shift, at::ScalarType dtype) {
  const at::ScalarType stored = dtype == at::kHalf ? at::kFloat : dtype;
  const int64_t R = points.size(0), C = weight.size(0);
  Tensor out = at::empty({R, C}, points.options().dtype(stored));
  const Tensor p = as_real(points, out), w = as_real(weight.t(), out), b = as_real(shift, out);
  by_storage(out, "lift_rows", [&](auto tag) {
    using S = decltype(tag);
    in_pieces(R, kRows, [&](int64_t first, int64_t count, int64_t) {
      patch_kernels<S>().lift(read<Real<S>>(p) + 3 * first, read<Real<S>>(w), read<Real<S>>(b), count, C, write<S>(out) + first * C);
    });
  });
  return out.to(dtype);
}

Tensor lift_rows_sums_cpu(const Tensor& grad, const Tensor& out, const Tensor& points) {
  const Tensor values = storable(out), flow = storable(grad.to(values.scalar_type())), p = as_real(points, values);
  const int64_t R = values.size(0), C = values.size(1), pieces = ceil_divide(R, kRows);
  Tensor sums = at::empty({4, C}, values.options().dtype(at::kDouble));
  std::vector<double> partial(pieces * 4 * C, 0.0);
  by_storage(values, "lift_rows_sums", [&](auto tag) {
    using S = decltype(tag);
    in_pieces(R, kRows, [&](int64_t first, int64_t count, int64_t piece) {
      patch_kernels<S>().lift_sums(read<S>(flow) + first * C, read<S>(values) + first * C, read<Real<S>>(p) + 3 * first, count, C,
                                   partial.data() + piece * 4 * C);
    });
  });
  add_up(partial, pieces, sums);
  return sums;
}

// The operands of a peak, kept alive in the type that is computed with.
struct PeakTensors {
  Tensor grad, winners, weight, order, ends;
  int64_t G, K, C, D, size, pieces;

  PeakTensors(const Tensor& grad_, const Tensor& winners_, const Tensor& weight_, const Tensor& rows)
      : grad(as_real(grad_, rows)), winners(winners_.contiguous()), weight(as_real(weight_, rows)) {
    G = grad.size(0), D = grad.size(1), C = weight.size(1), K = G ? rows.size(0) / G : 1;
    pieces = std::clamp<int64_t>(G / 64, 1, kPieces);
    size = std::max<int64_t>(1, ceil_divide(G, pieces));
    pieces = ceil_divide(G, size);
    const uint8_t* chosen = winners.const_data_ptr<uint8_t>();
    const int64_t last = winners.numel() ? *std::max_element(chosen, chosen + winners.numel()) : 0;
    TORCH_CHECK_INDEX(last < K, "winners: member ", last, " is outside 0..", K - 1);
    order = at::empty({G, D}, winners.options().dtype(at::kInt)), ends = at::zeros({G, K}, order.options());
    in_pieces(G, ceil_divide(kRows, K), [&](int64_t first, int64_t count, int64_t) {
      for (int64_t g = first; g < first + count; ++g) sort_by_member(chosen + g * D, write<int32_t>(order) + g * D, write<int32_t>(ends) + g * K);
    });
  }

  // Sorts the outputs of a group by the member that won them; `end` holds zeros before.
  void sort_by_member(const uint8_t* chosen, int32_t* sorted, int32_t* end) const {
    for (int64_t d = 0; d < D; ++d) ++end[chosen[d]];
    for (int64_t m = 1; m < K; ++m) end[m] += end[m - 1];
    for (int64_t d = D - 1; d >= 0; --d) sorted[--end[chosen[d]]] = int32_t(d);
    for (int64_t d = 0; d < D; ++d) ++end[chosen[d]];
  }

  template <typename R>
  Peak<R> from(int64_t first) const {
    return {read<R>(grad) + first * D,        read<uint8_t>(winners) + first * D, read<int32_t>(order) + first * D,
            read<int32_t>(ends) + first * K, read<R>(weight),                      D};
  }
};

Tensor spread_winners_cpu(const Tensor& grad, const Tensor& winners, const Tensor& weight, const Tensor& rows, Tensor& grad_rows) {
  const Tensor values = storable(rows), flow = storable(grad_rows.to(values.scalar_type()));
  const PeakTensors peak(grad, winners, weight, values);
  const int64_t C = peak.C, K = peak.K;
  Tensor grad_weight = at::empty({peak.D, C}, peak.weight.options());
  by_storage(values, "spread_winners", [&](auto tag) {
    using S = decltype(tag);
    using R = Real<S>;
    std::vector<R> partial(peak.pieces * peak.D * C, R(0));
    in_pieces(peak.G, peak.size, [&](int64_t first, int64_t count, int64_t piece) {
      const Scratch scratch(peak_scratch(peak.D, K) * sizeof(R));
      patch_kernels<S>().spread(peak.from<R>(first), read<S>(values) + first * K * C, count, K, C, write<S>(flow) + first * K * C,
                                partial.data() + piece * peak.D * C, static_cast<R*>(scratch.get()));
    });
    add_up(partial, peak.pieces, grad_weight);
  });
  if (!flow.is_same(grad_rows)) grad_rows.copy_(flow);
  return grad_weight;
}

std::tuple<Tensor, Tensor> peak_sums_cpu(const Tensor& grad, const Tensor& winners, const Tensor& weight, const Tensor& x,
                                         const Tensor& mean, const Tensor& scale, const Tensor& shift) {
  const Tensor rows = storable(x), m = as_real(mean, rows), s = as_real(scale, rows), b = as_real(shift, rows);
  const PeakTensors peak(grad, winners, weight, rows);
  const int64_t C = peak.C, K = peak.K;
  Tensor sums = at::empty({2, C}, rows.options().dtype(at::kDouble)), grad_weight = at::empty({peak.D, C}, peak.weight.options());
  std::vector<double> partial_sums(peak.pieces * 2 * C, 0.0);
  by_storage(rows, "peak_sums", [&](auto tag) {
    using S = decltype(tag);
    using R = Real<S>;
    const Norm<R> norm{read<R>(m), read<R>(s), read<R>(b)};
    std::vector<R> partial(peak.pieces * peak.D * C, R(0));
    in_pieces(peak.G, peak.size, [&](int64_t first, int64_t count, int64_t piece) {
      const Scratch scratch(peak_scratch(peak.D, K) * sizeof(R));
      patch_kernels<S>().peak_sums(peak.from<R>(first), read<S>(rows) + first * K * C, norm, count, K, C, partial_sums.data() + piece * 2 * C,
                                   partial.data() + piece * peak.D * C, static_cast<R*>(scratch.get()));
    });
    add_up(partial, peak.pieces, grad_weight);
  });
  add_up(partial_sums, peak.pieces, sums);
  return {sums, grad_weight};
}

std::tuple<Tensor, Tensor> peak_backward_cpu(const Tensor& grad, const Tensor& winners, const Tensor& weight, const Tensor& x,
                                             const Tensor& mean, const Tensor& scale, const Tensor& shift, const Tensor& slope,
                                             const Tensor& offset) {
  const Tensor rows = storable(x), m = as_real(mean, rows), s = as_real(scale, rows), b = as_real(shift, rows);
  const Tensor incline = as_real(slope, rows), rest = as_real(offset, rows);
  const PeakTensors peak(grad, winners, weight, rows);
  const int64_t C = peak.C, K = peak.K;
  Tensor out = at::empty(rows.sizes(), rows.options()), group_sums = at::empty({peak.G, C}, peak.weight.options());
  by_storage(rows, "peak_backward", [&](auto tag) {
    using S = decltype(tag);
    using R = Real<S>;
    const Norm<R> norm{read<R>(m), read<R>(s), read<R>(b)};
    in_pieces(peak.G, ceil_divide(kRows, K), [&](int64_t first, int64_t count, int64_t) {
      const Scratch scratch(peak_scratch(peak.D, K) * sizeof(R));
      patch_kernels<S>().peak_backward(peak.from<R>(first), read<S>(rows) + first * K * C, norm, read<R>(incline), read<R>(rest), count, K, C,
                                       write<S>(out) + first * K * C, write<R>(group_sums) + first * C, static_cast<R*>(scratch.get()));
    });
  });
  return {out.to(x.scalar_type()), group_sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("group_max", group_max_cpu);
  m.impl("join_rows", join_rows_cpu);
  m.impl("norm_relu", norm_relu_cpu);
  m.impl("lift_rows", lift_rows_cpu);
  m.impl("lift_rows_sums", lift_rows_sums_cpu);
  m.impl("spread_winners", spread_winners_cpu);
  m.impl("peak_sums", peak_sums_cpu);
  m.impl("peak_backward", peak_backward_cpu);
}

}  // namespace m2ae
