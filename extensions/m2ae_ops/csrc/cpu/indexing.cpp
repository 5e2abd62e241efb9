// Gathering, grouping and interpolation. Sums into rows are shared out by cloud and channel, so that no two threads write to
// the same place and the order of every sum is that of the index.
#include <cstring>

#include "common.h"

namespace m2ae {
namespace {

constexpr int64_t kChannels = 32;  // channels in a unit of work of the scattering sums

// Largest and smallest index are checked before the loops run over them.
void check_range(const char* op, const Tensor& idx, int64_t count) {
  const int64_t* values = idx.const_data_ptr<int64_t>();
  int64_t low = 0, high = 0;
  for (int64_t i = 0; i < idx.numel(); ++i) low = std::min(low, values[i]), high = std::max(high, values[i]);
  TORCH_CHECK_INDEX(low >= 0 && high < count, op, ": index ", low < 0 ? low : high, " is outside 0..", count - 1);
}

Tensor gather_cpu(const Tensor& values, const Tensor& idx) {
  const Tensor v = values.contiguous(), index = idx.contiguous();
  const int64_t B = v.size(0), N = v.size(1), C = v.size(2), per_cloud = B ? index.numel() / B : 0;
  check_range("gather", index, N);
  auto shape = index.sizes().vec();
  shape.push_back(C);
  Tensor out = at::empty(shape, v.options());
  const size_t row = C * v.element_size();
  const char* from = static_cast<const char*>(v.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t* chosen = index.const_data_ptr<int64_t>();
  at::parallel_for(0, index.numel(), grain(2 + row / 16), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(to + i * row, from + (i / per_cloud * N + chosen[i]) * row, row);
  });
  return out;
}

// Adds row i of `from` (rows x C) to row idx[i] of `to`, channels first..last.
template <typename T>
void add_rows(const T* from, const int64_t* idx, int64_t rows, int64_t C, int64_t first, int64_t last, T* to) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* source = from + i * C;
    T* target = to + idx[i] * C;
    for (int64_t c = first; c < last; ++c) target[c] += source[c];
  }
}

Tensor gather_backward_cpu(const Tensor& grad, const Tensor& idx, int64_t count) {
  const Tensor g = to_compute(grad), index = idx.contiguous();
  const int64_t B = g.size(0), C = g.size(-1), rows = B ? index.numel() / B : 0;
  check_range("gather_backward", index, count);
  Tensor out = at::zeros({B, count, C}, g.options());
  const int64_t pieces = (C + kChannels - 1) / kChannels;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "m2ae::gather_backward", [&] {
    const scalar_t* from = g.const_data_ptr<scalar_t>();
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * pieces, grain(rows * std::min(C, kChannels) / 4), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / pieces, first = unit % pieces * kChannels;
        add_rows(from + b * rows * C, chosen + b * rows, rows, C, first, std::min(C, first + kChannels), to + b * count * C);
      }
    });
  });
  return out.to(grad.scalar_type());
}

Tensor group_cpu(const Tensor& points, const Tensor& centers, const Tensor& idx) {
  const Tensor p = to_compute(points), middle = to_compute(centers), index = idx.contiguous();
  const int64_t B = p.size(0), N = p.size(1), C = p.size(2), G = index.size(1), K = index.size(2);
  check_range("group", index, N);
  Tensor out = at::empty({B, G, K, C}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::group", [&] {
    const scalar_t *from = p.const_data_ptr<scalar_t>(), *mid = middle.const_data_ptr<scalar_t>();
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * G, grain(K * C), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        for (int64_t k = 0; k < K; ++k) {
          const scalar_t* row = from + (g / G * N + chosen[g * K + k]) * C;
          for (int64_t c = 0; c < C; ++c) to[(g * K + k) * C + c] = row[c] - mid[g * C + c];
        }
      }
    });
  });
  return out.to(points.scalar_type());
}

Tensor three_interpolate_cpu(const Tensor& values, const Tensor& idx, const Tensor& weight) {
  const Tensor v = to_compute(values), index = idx.contiguous(), w = weight.to(v.scalar_type()).contiguous();
  const int64_t B = v.size(0), M = v.size(1), C = v.size(2), N = index.size(1);
  check_range("three_interpolate", index, M);
  Tensor out = at::empty({B, N, C}, v.options());
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "m2ae::three_interpolate", [&] {
    const scalar_t *from = v.const_data_ptr<scalar_t>(), *weights = w.const_data_ptr<scalar_t>();
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * N, grain(C), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const scalar_t *cloud = from + i / N * M * C, *a = weights + 3 * i;
        const scalar_t *v0 = cloud + chosen[3 * i] * C, *v1 = cloud + chosen[3 * i + 1] * C, *v2 = cloud + chosen[3 * i + 2] * C;
        for (int64_t c = 0; c < C; ++c) to[i * C + c] = (a[0] * v0[c] + a[1] * v1[c]) + a[2] * v2[c];
      }
    });
  });
  return out.to(values.scalar_type());
}

// Gradient of the values for channels first..last of one cloud.
template <typename T>
void spread_rows(const T* grad, const int64_t* idx, const T* weight, int64_t N, int64_t C, int64_t first, int64_t last, T* to) {
  for (int64_t i = 0; i < 3 * N; ++i) {
    const T* source = grad + i / 3 * C;
    T* target = to + idx[i] * C;
    for (int64_t c = first; c < last; ++c) target[c] += weight[i] * source[c];
  }
}

std::tuple<Tensor, Tensor> three_interpolate_backward_cpu(const Tensor& grad, const Tensor& values, const Tensor& idx,
                                                          const Tensor& weight) {
  const Tensor v = to_compute(values), g = grad.to(v.scalar_type()).contiguous();
  const Tensor index = idx.contiguous(), w = weight.to(v.scalar_type()).contiguous();
  const int64_t B = v.size(0), M = v.size(1), C = v.size(2), N = index.size(1);
  check_range("three_interpolate_backward", index, M);
  Tensor to_values = at::zeros({B, M, C}, v.options()), to_weight = at::empty({B, N, 3}, v.options());
  const int64_t pieces = (C + kChannels - 1) / kChannels;
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "m2ae::three_interpolate_backward", [&] {
    const scalar_t *flow = g.const_data_ptr<scalar_t>(), *from = v.const_data_ptr<scalar_t>();
    const scalar_t* weights = w.const_data_ptr<scalar_t>();
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    scalar_t *to = to_values.mutable_data_ptr<scalar_t>(), *to_w = to_weight.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * pieces, grain(N * std::min(C, kChannels)), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / pieces, first = unit % pieces * kChannels, at = b * N;
        spread_rows(flow + at * C, chosen + 3 * at, weights + 3 * at, N, C, first, std::min(C, first + kChannels), to + b * M * C);
      }
    });
    at::parallel_for(0, B * N, grain(C), [&](int64_t begin, int64_t end) {
      for (int64_t i = 3 * begin; i < 3 * end; ++i) {
        const scalar_t *row = from + (i / 3 / N * M + chosen[i]) * C, *source = flow + i / 3 * C;
        scalar_t sum = 0;
        for (int64_t c = 0; c < C; ++c) sum += source[c] * row[c];
        to_w[i] = sum;
      }
    });
  });
  return {to_values.to(values.scalar_type()), to_weight.to(weight.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("gather", gather_cpu);
  m.impl("gather_backward", gather_backward_cpu);
  m.impl("group", group_cpu);
  m.impl("three_interpolate", three_interpolate_cpu);
  m.impl("three_interpolate_backward", three_interpolate_backward_cpu);
}

}  // namespace m2ae
