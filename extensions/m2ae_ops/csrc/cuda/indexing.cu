// Gathering, grouping and interpolation. An index out of range stops the program with a device-side assertion, before anything
// is read there. Sums into rows are collected by the rows, each in the order of its entries: no atomics on values.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "bitonic.cuh"
#include "common.cuh"

namespace m2ae {
namespace {

constexpr int kThreads = 256;

__device__ inline int64_t checked(int64_t index, int64_t count) {
  CUDA_KERNEL_ASSERT(index >= 0 && index < count);
  return index;
}

// A thread per unit of memory; `units` of them make a row. Index is the type of positions in the output.
template <typename Unit, typename Index>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Unit* values, const int64_t* idx, int64_t count, Index units, Index per_cloud, Index total, Unit* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const Index row = Index(i) / units, unit = Index(i) % units;
  out[i] = values[(int64_t(row / per_cloud) * count + checked(idx[row], count)) * units + unit];
}

template <typename Unit>
void start_gather(const Tensor& values, const Tensor& idx, int64_t row_bytes, Tensor& out) {
  const int64_t units = row_bytes / sizeof(Unit), total = idx.numel() * units, per_cloud = idx.numel() / idx.size(0);
  const Unit* from = static_cast<const Unit*>(values.const_data_ptr());
  const int64_t *chosen = idx.const_data_ptr<int64_t>(), blocks = ceil_div(total, kThreads);
  Unit* to = static_cast<Unit*>(out.mutable_data_ptr());
  if (total <= INT_MAX) {
    launch(gather_kernel<Unit, int>, blocks, kThreads, 0, from, chosen, values.size(1), units, per_cloud, total, to);
  } else {
    launch(gather_kernel<Unit, int64_t>, blocks, kThreads, 0, from, chosen, values.size(1), units, per_cloud, total, to);
  }
}

// Rows are moved as bytes, in the widest unit that they and their addresses are multiples of.
Tensor gather_cuda(const Tensor& values, const Tensor& idx) {
  const CUDAGuard guard(values.device());
  const Tensor v = values.contiguous(), index = idx.contiguous();
  auto shape = index.sizes().vec();
  shape.push_back(v.size(2));
  Tensor out = at::empty(shape, v.options());
  if (out.numel() == 0) return out;
  const int64_t row_bytes = v.size(2) * v.element_size();
  const auto fits = [&](int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(v.const_data_ptr()) | reinterpret_cast<uintptr_t>(out.const_data_ptr());
    return row_bytes % bytes == 0 && address % bytes == 0;
  };
  if (fits(16)) {
    start_gather<uint4>(v, index, row_bytes, out);
  } else if (fits(8)) {
    start_gather<uint2>(v, index, row_bytes, out);
  } else if (fits(4)) {
    start_gather<uint32_t>(v, index, row_bytes, out);
  } else if (fits(2)) {
    start_gather<uint16_t>(v, index, row_bytes, out);
  } else {
    start_gather<uint8_t>(v, index, row_bytes, out);
  }
  return out;
}

template <typename S>
__global__ void __launch_bounds__(kThreads) group_kernel(const S* points, const S* centers, const int64_t* idx, int64_t count,
                                                         int64_t groups, int64_t neighbors, int64_t channels, int64_t total, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t row = i / channels, c = i % channels, g = row / neighbors;
  const Compute<S> value = points[(g / groups * count + checked(idx[row], count)) * channels + c];
  out[i] = S(value - Compute<S>(centers[g * channels + c]));
}

Tensor group_cuda(const Tensor& points, const Tensor& centers, const Tensor& idx) {
  const CUDAGuard guard(points.device());
  if (!points.is_floating_point()) {
    return group_cuda(points.to(at::kFloat), centers.to(at::kFloat), idx).to(points.scalar_type());
  }
  const Tensor p = points.contiguous(), middle = centers.contiguous(), index = idx.contiguous();
  const int64_t B = p.size(0), N = p.size(1), C = p.size(2), G = index.size(1), K = index.size(2);
  Tensor out = at::empty({B, G, K, C}, p.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, p.scalar_type(), "m2ae::group", [&] {
    launch(group_kernel<scalar_t>, ceil_div(out.numel(), kThreads), kThreads, 0, p.const_data_ptr<scalar_t>(),
           middle.const_data_ptr<scalar_t>(), index.const_data_ptr<int64_t>(), N, G, K, C, out.numel(),
           out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

template <typename S>
__global__ void __launch_bounds__(kThreads) interpolate_kernel(const S* values, const int64_t* idx, const Compute<S>* weight,
                                                               int64_t count, int64_t points, int64_t channels, int64_t total, S* out) {
  using T = Compute<S>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t row = i / channels;
  const S* cloud = values + row / points * count * channels + i % channels;
  const int64_t* chosen = idx + 3 * row;
  const T* w = weight + 3 * row;
  const T v0 = cloud[checked(chosen[0], count) * channels], v1 = cloud[checked(chosen[1], count) * channels];
  const T v2 = cloud[checked(chosen[2], count) * channels];
  out[i] = S((w[0] * v0 + w[1] * v1) + w[2] * v2);
}

Tensor three_interpolate_cuda(const Tensor& values, const Tensor& idx, const Tensor& weight) {
  const CUDAGuard guard(values.device());
  const Tensor v = values.contiguous(), index = idx.contiguous(), w = weight.to(compute_type(v)).contiguous();
  const int64_t B = v.size(0), M = v.size(1), C = v.size(2), N = index.size(1);
  Tensor out = at::empty({B, N, C}, v.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, v.scalar_type(), "m2ae::three_interpolate", [&] {
    launch(interpolate_kernel<scalar_t>, ceil_div(out.numel(), kThreads), kThreads, 0, v.const_data_ptr<scalar_t>(),
           index.const_data_ptr<int64_t>(), w.const_data_ptr<Compute<scalar_t>>(), M, N, C, out.numel(),
           out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

constexpr int kSortThreads = 1024;

// Exclusive sums of `values` in place, by a whole block.
__device__ inline void scan_block(int* values, int count) {
  __shared__ int sums[kSortThreads / kWarp];
  const int each = (count + kSortThreads - 1) / kSortThreads, lane = lane_id(), warp = threadIdx.x / kWarp;
  const int first = int64_t(threadIdx.x) * each < count ? int(threadIdx.x) * each : count;
  const int last = count - first < each ? count : first + each;
  int own = 0;
  for (int i = first; i < last; ++i) own += values[i];
  int through = own;  // the sum up to and with this lane
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = shuffle(through, lane - step);
    if (lane >= step) through += before;
  }
  if (lane == kWarp - 1) sums[warp] = through;
  __syncthreads();
  int running = through - own;
  for (int w = 0; w < warp; ++w) running += sums[w];
  for (int i = first; i < last; ++i) {
    const int here = values[i];
    values[i] = running;
    running += here;
  }
  __syncthreads();
}

// Lists the entries of every row, a block per cloud: row r has entries[ends[r - 1]..ends[r]), in no particular order. Counting
// happens in shared memory if there is room for a number per row, else in `ends` itself.
template <bool kShared>
__global__ void __launch_bounds__(kSortThreads) list_entries_kernel(const int64_t* idx, int entries, int rows, int* ends, int* list) {
  const int64_t b = blockIdx.x;
  idx += b * entries, ends += b * rows, list += b * entries;
  int* cursor = kShared ? dynamic_shared<int>() : ends;
  for (int r = threadIdx.x; r < rows; r += kSortThreads) cursor[r] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < entries; e += kSortThreads) atomicAdd(cursor + checked(idx[e], rows), 1);
  __syncthreads();
  scan_block(cursor, rows);
  for (int e = threadIdx.x; e < entries; e += kSortThreads) list[atomicAdd(cursor + idx[e], 1)] = e;
  if (!kShared) return;
  __syncthreads();
  for (int r = threadIdx.x; r < rows; r += kSortThreads) ends[r] = cursor[r];
}

// Gradients that flow into rows. kEach entries share a row of `grad`; weight is null for 1.
template <typename S>
struct Flow {
  const S* grad;
  const Compute<S>* weight;
  int64_t channels;

  template <int kEach>
  __device__ inline Compute<S> operator()(int64_t entry, int64_t c) const {
    const Compute<S> value = grad[entry / kEach * channels + c];
    return weight ? weight[entry] * value : value;
  }
};

// out (B, rows, C): a warp per row adds up its entries in their order. Few are sorted first; of a row with many the warp goes
// through all indices of the cloud instead.
template <typename S, int kEach>
__global__ void __launch_bounds__(kThreads) sum_entries_kernel(Flow<S> flow, const int64_t* idx, const int* ends, const int* list,
                                                               int entries, int rows, int64_t total, S* out) {
  using T = Compute<S>;
  const int64_t at = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp, b = at / rows, base = b * entries;
  if (at >= total) return;
  const int row = int(at % rows), lane = lane_id(), first = row ? ends[at - 1] : 0, count = ends[at] - first;
  if (count <= kWarp) {
    unsigned sorted[1] = {lane < count ? unsigned(list[base + first + lane]) : ~0u};
    if (count > 1) bitonic_sort<1>(sorted);
    for (int64_t c = lane; c - lane < flow.channels; c += kWarp) {
      T sum = 0;
      for (int i = 0; i < count; ++i) {
        const unsigned entry = shuffle(sorted[0], i);
        if (c < flow.channels) sum += flow.template operator()<kEach>(base + entry, c);
      }
      if (c < flow.channels) out[at * flow.channels + c] = S(sum);
    }
    return;
  }
  for (int64_t c = lane; c - lane < flow.channels; c += kWarp) {
    T sum = 0;
    for (int start = 0; start < entries; start += kWarp) {
      const bool hit = start + lane < entries && idx[base + start + lane] == row;
      for (unsigned hits = __ballot_sync(kAllLanes, hit); hits; hits &= hits - 1) {
        if (c < flow.channels) sum += flow.template operator()<kEach>(base + start + __ffs(hits) - 1, c);
      }
    }
    if (c < flow.channels) out[at * flow.channels + c] = S(sum);
  }
}

constexpr int kSharedRows = 8192;

// Sums entries into (B, rows, C); idx is contiguous with `entries` per cloud.
template <typename S, int kEach>
void sum_into_rows(const char* op, const S* grad, const Tensor& idx, const Compute<S>* weight, int64_t channels, Tensor& out) {
  const int64_t B = out.size(0);
  if (out.numel() == 0) return;
  const int entries = small(idx.numel() / B, op, "indices"), rows = small(out.size(1), op, "rows");
  Tensor ends = at::empty({B, rows}, idx.options().dtype(at::kInt)), list = at::empty({B, entries}, ends.options());
  const int64_t* chosen = idx.const_data_ptr<int64_t>();
  const bool shared = rows <= kSharedRows;
  launch(shared ? list_entries_kernel<true> : list_entries_kernel<false>, B, kSortThreads, shared ? rows * sizeof(int) : 0, chosen,
         entries, rows, ends.mutable_data_ptr<int>(), list.mutable_data_ptr<int>());
  launch(sum_entries_kernel<S, kEach>, ceil_div(B * rows, kThreads / kWarp), kThreads, 0, Flow<S>{grad, weight, channels}, chosen,
         ends.const_data_ptr<int>(), list.const_data_ptr<int>(), entries, rows, B * rows, out.mutable_data_ptr<S>());
}

Tensor gather_backward_cuda(const Tensor& grad, const Tensor& idx, int64_t count) {
  const CUDAGuard guard(grad.device());
  const Tensor g = grad.contiguous(), index = idx.contiguous();
  Tensor out = at::empty({g.size(0), count, g.size(-1)}, g.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, g.scalar_type(), "m2ae::gather_backward", [&] {
    sum_into_rows<scalar_t, 1>("gather_backward", g.const_data_ptr<scalar_t>(), index, nullptr, g.size(-1), out);
  });
  return out;
}

// A warp per index: the product of its row of values with its gradient.
template <typename S>
__global__ void __launch_bounds__(kThreads) weight_gradient_kernel(const S* grad, const S* values, const int64_t* idx, int64_t count,
                                                                   int64_t points, int64_t channels, int64_t total, Compute<S>* out) {
  using T = Compute<S>;
  const int64_t entry = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (entry >= total) return;
  const S* flow = grad + entry / 3 * channels;
  const S* row = values + (entry / 3 / points * count + checked(idx[entry], count)) * channels;
  T sum = 0;
  for (int64_t c = lane_id(); c < channels; c += kWarp) sum += T(flow[c]) * T(row[c]);
  sum = warp_sum(sum);
  if (lane_id() == 0) out[entry] = sum;
}

std::tuple<Tensor, Tensor> three_interpolate_backward_cuda(const Tensor& grad, const Tensor& values, const Tensor& idx,
                                                           const Tensor& weight) {
  const CUDAGuard guard(values.device());
  // Of two precisions, neither is rounded.
  const Tensor v = values.scalar_type() == grad.scalar_type() ? values.contiguous() : to_compute(values);
  const Tensor g = grad.to(v.scalar_type()).contiguous();
  const Tensor index = idx.contiguous(), w = weight.to(compute_type(v)).contiguous();
  const int64_t B = v.size(0), M = v.size(1), C = v.size(2), N = index.size(1);
  Tensor to_values = at::empty({B, M, C}, v.options()), to_weight = at::empty({B, N, 3}, w.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, v.scalar_type(), "m2ae::three_interpolate_backward", [&] {
    using T = Compute<scalar_t>;
    const scalar_t* flow = g.const_data_ptr<scalar_t>();
    sum_into_rows<scalar_t, 3>("three_interpolate_backward", flow, index, w.const_data_ptr<T>(), C, to_values);
    launch(weight_gradient_kernel<scalar_t>, ceil_div(to_weight.numel(), kThreads / kWarp), kThreads, 0, flow,
           v.const_data_ptr<scalar_t>(), index.const_data_ptr<int64_t>(), M, N, C, to_weight.numel(), to_weight.mutable_data_ptr<T>());
  });
  return {to_values.to(values.scalar_type()), to_weight.to(weight.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) {
  m.impl("gather", gather_cuda);
  m.impl("gather_backward", gather_backward_cuda);
  m.impl("group", group_cuda);
  m.impl("three_interpolate", three_interpolate_cuda);
  m.impl("three_interpolate_backward", three_interpolate_backward_cuda);
}

}  // namespace m2ae
