// Gathering, grouping and interpolation. Sums into rows are shared out by cloud and channel, so that no two threads write to
// the same place and the order of every sum is that of the index.
#include <cstring>

#include "common.h"

namespace m2ae {
namespace {

constexpr int64_t kChannels = 32;  // channels in a unit of work of the scattering sums

// All indices are checked before the loops run over them.
void check_range(const char* op, const Tensor& idx, int64_t count) {
  const int64_t *values = idx.const_data_ptr<int64_t>(), *end = values + idx.numel();
  // The upper bit of some difference is set if one of them is outside; without comparisons the loop becomes vectors.
  uint64_t outside = 0;
  for (const int64_t* v = values; v != end; ++v) outside |= uint64_t(*v) | (uint64_t(count - 1) - uint64_t(*v));
  if (outside >> 63 == 0) return;
  int64_t low = 0, high = 0;
  for (const int64_t* v = values; v != end; ++v) low = std::min(low, *v), high = std::max(high, *v);
  TORCH_CHECK_INDEX(false, op, ": index ", low < 0 ? low : high, " is outside 0..", count - 1);
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

// bfloat16 is read as it lies in memory, float16 as a copy in float32; sums are kept in the compute precision.
Tensor readable(const Tensor& t) { return t.scalar_type() == at::kBFloat16 ? t.contiguous() : to_compute(t); }

const Bfloat16* as_bfloat16(const Tensor& t) { return static_cast<const Bfloat16*>(t.const_data_ptr()); }

// Adds rows of `from` (B, rows, C) to those of the result (B, count, C); see Kernels::scatter_rows. The work is shared out by
// cloud, and by pieces of the channels where there are few clouds.
Tensor scatter(const Tensor& from, const Tensor& index, const Tensor& weight, int64_t rows, int64_t count) {
  const int64_t B = from.size(0), C = from.size(-1), entries = B ? index.numel() / B : 0;
  const int64_t wanted = (2 * at::get_num_threads() + B - 1) / std::max<int64_t>(B, 1);
  const int64_t pieces = std::max<int64_t>(1, std::min(wanted, C / kChannels)), width = (C + pieces - 1) / pieces;
  Tensor out = at::empty({B, count, C}, from.options().dtype(compute_type(from)));
  const bool bfloat16 = from.scalar_type() == at::kBFloat16;
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "m2ae::scatter", [&] {
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    const scalar_t* weights = weight.defined() ? weight.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* sums = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * pieces, grain((count + entries) * width / 4), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / pieces, first = unit % pieces * width, channels = std::min(C - first, width);
        if (channels <= 0) continue;
        scalar_t* to = sums + b * count * C + first;
        if (channels == C) std::memset(to, 0, count * C * sizeof(scalar_t));
        else for (int64_t i = 0; i < count; ++i) std::memset(to + i * C, 0, channels * sizeof(scalar_t));
        const scalar_t* w = weights ? weights + b * entries : nullptr;
        const int64_t at = b * rows * C + first;
        if (bfloat16) kernels<scalar_t>().scatter_rows_bf16(as_bfloat16(from) + at, chosen + b * entries, w, rows, C, channels, to);
        else kernels<scalar_t>().scatter_rows(from.const_data_ptr<scalar_t>() + at, chosen + b * entries, w, rows, C, channels, to);
      }
    });
  });
  return out;
}

Tensor gather_backward_cpu(const Tensor& grad, const Tensor& idx, int64_t count) {
  const Tensor index = idx.contiguous();
  check_range("gather_backward", index, count);
  return scatter(readable(grad), index, Tensor(), idx.size(0) ? idx.numel() / idx.size(0) : 0, count).to(grad.scalar_type());
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

std::tuple<Tensor, Tensor> three_interpolate_backward_cpu(const Tensor& grad, const Tensor& values, const Tensor& idx,
                                                          const Tensor& weight) {
  const Tensor v = readable(values), g = readable(grad.to(values.scalar_type())), index = idx.contiguous();
  const Tensor w = weight.to(compute_type(v)).contiguous();
  const int64_t M = v.size(1), C = v.size(2), B = index.size(0), N = index.size(1);
  check_range("three_interpolate_backward", index, M);
  const Tensor to_values = scatter(g, index, w, N, M);
  Tensor to_weight = at::empty({B, N, 3}, w.options());
  AT_DISPATCH_FLOATING_TYPES(w.scalar_type(), "m2ae::three_interpolate_backward", [&] {
    const int64_t* chosen = index.const_data_ptr<int64_t>();
    scalar_t* out = to_weight.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * N, grain(C / 2), [&](int64_t begin, int64_t end) {
      while (begin < end) {  // cloud by cloud
        const int64_t b = begin / N, rows = std::min(end, (b + 1) * N) - begin;
        const int64_t row = begin * C, cloud = b * M * C;
        if (v.scalar_type() == at::kBFloat16) {
          kernels<scalar_t>().dot_rows_bf16(as_bfloat16(g) + row, as_bfloat16(v) + cloud, chosen + 3 * begin, rows, C, out + 3 * begin);
        } else {
          kernels<scalar_t>().dot_rows(g.const_data_ptr<scalar_t>() + row, v.const_data_ptr<scalar_t>() + cloud, chosen + 3 * begin,
                                       rows, C, out + 3 * begin);
        }
        begin += rows;
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
