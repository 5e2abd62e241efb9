// Farthest point sampling: clouds are shared out among the threads.
#include <algorithm>
#include <c10/util/string_view.h>
#include <vector>

#include "common.h"

namespace m2ae {
namespace {

// The order in which the published CUDA kernel prefers points of equal distance: smallest bit-reversed (index mod T), then
// smallest index, with T = min(512, 2^floor(log2 count)).
std::vector<int32_t> pointnet2_order(int64_t count) {
  int bits = 0;
  while (bits < 9 && (int64_t(2) << bits) <= count) ++bits;
  const int64_t threads = int64_t(1) << bits;
  std::vector<int32_t> order;
  order.reserve(count);
  for (int64_t turned = 0; turned < threads; ++turned) {
    int64_t slot = 0;
    for (int b = 0; b < bits; ++b) slot |= ((turned >> b) & 1) << (bits - 1 - b);
    for (int64_t i = slot; i < count; i += threads) order.push_back(int32_t(i));
  }
  return order;
}

Tensor fps_cpu(const Tensor& points, int64_t samples, bool skip_near_origin, c10::string_view tie_break) {
  const Tensor p = to_compute(points);
  const int64_t B = p.size(0), N = p.size(1);
  Tensor out = at::empty({B, samples}, p.options().dtype(at::kLong));
  std::vector<int32_t> order;
  if (tie_break == "pointnet2") order = pointnet2_order(N);
  const FpsRules rules{skip_near_origin, order.empty() ? nullptr : order.data()};
  int64_t* chosen = out.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::fps", [&] {
    const scalar_t* data = p.const_data_ptr<scalar_t>();
    const int64_t pairs = (B + 1) / 2;  // the kernel works on two clouds at a time
    at::parallel_for(0, pairs, grain(2 * (N + samples * 60)), [&](int64_t begin, int64_t end) {
      Scratch scratch(2 * fps_scratch<scalar_t>(N));
      const int64_t first = 2 * begin, last = std::min(2 * end, B);
      kernels<scalar_t>().fps(data + first * N * 3, last - first, N, samples, rules, scratch.get(), chosen + first * samples);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) { m.impl("fps", fps_cpu); }

}  // namespace m2ae
