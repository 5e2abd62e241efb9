// Chamfer distance and loss. What a point gets through its own pair and what it gets through those that have chosen it, in their
// order, add up apart, as on the CPU.
#include "common.cuh"
#include "nearest.cuh"

namespace m2ae {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_cuda(const Tensor& a, const Tensor& b) {
  const CUDAGuard guard(a.device());
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  const auto indices = p.options().dtype(at::kLong);
  Tensor d1 = at::empty({B, n}, p.options()), d2 = at::empty({B, m}, p.options());
  Tensor i1 = at::empty({B, n}, indices), i2 = at::empty({B, m}, indices);
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer", [&] {
    nearest_all<scalar_t, 1>(p, q, d1, i1, "chamfer");
    nearest_all<scalar_t, 1>(q, p, d2, i2, "chamfer");
  });
  return {d1, d2, i1, i2};
}

constexpr int kPairThreads = 128, kPairTile = 1024;

// One direction of chosen pairs: weight of the squared distance, and the partner of every point.
template <typename T>
struct Way {
  const T* weight;
  const int64_t* partner;
};

// Gradient of one cloud, a thread per point: factor * weight * (offset to the partner) through its own pair, less the same of
// the points that have chosen it, in their order. `slices` blocks serve a cloud.
template <typename T>
__global__ void __launch_bounds__(kPairThreads) pair_gradient_kernel(const T* from, int n, const T* to, int m, Way<T> own, Way<T> others,
                                                                     T factor, int slices, T* grad) {
  __shared__ int4 tile[kPairTile / 4];
  int* partners = reinterpret_cast<int*>(tile);
  const int64_t b = blockIdx.x / slices;
  const int i = int(blockIdx.x % slices) * int(blockDim.x) + int(threadIdx.x);
  const bool real = i < n;
  from += b * n * 3, to += b * m * 3;
  const T* here = from + int64_t(real ? i : n - 1) * 3;
  const T x = here[0], y = here[1], z = here[2];
  T gx = 0, gy = 0, gz = 0, ox = 0, oy = 0, oz = 0;
  if (real) {
    const int64_t partner = own.partner[b * n + i];
    CUDA_KERNEL_ASSERT(partner >= 0 && partner < m);
    const T weight = factor * own.weight[b * n + i];
    const T* there = to + partner * 3;
    ox = weight * (x - there[0]), oy = weight * (y - there[1]), oz = weight * (z - there[2]);
  }
  const auto take_off = [&](int j) {
    const T weight = factor * others.weight[b * m + j];
    const T* there = to + int64_t(j) * 3;
    gx -= weight * (there[0] - x), gy -= weight * (there[1] - y), gz -= weight * (there[2] - z);
  };
  for (int start = 0; start < m; start += kPairTile) {
    const int count = m - start < kPairTile ? m - start : kPairTile, padded = (count + 3) / 4 * 4;
    __syncthreads();
    for (int j = threadIdx.x; j < padded; j += blockDim.x) partners[j] = j < count ? int(others.partner[b * m + start + j]) : -1;
    __syncthreads();
    for (int j = 0; real && j < padded; j += 4) {
      const int4 four = tile[j / 4];
      if (four.x == i) take_off(start + j);
      if (four.y == i) take_off(start + j + 1);
      if (four.z == i) take_off(start + j + 2);
      if (four.w == i) take_off(start + j + 3);
    }
  }
  if (!real) return;
  T* out = grad + (b * n + i) * 3;
  out[0] = ox + gx, out[1] = oy + gy, out[2] = oz + gz;
}

// Writes the gradient of `from` (B, n, 3), contiguous as all others are.
template <typename T>
void start_pair_gradient(const Tensor& from, const Tensor& to, const Tensor& own_weight, const Tensor& own_partner,
                         const Tensor& other_weight, const Tensor& other_partner, T factor, Tensor& grad) {
  const int n = small(from.size(1), "chamfer_backward", "points"), m = small(to.size(1), "chamfer_backward", "points");
  const int threads = n <= 32 ? 32 : kPairThreads, slices = int(ceil_div(n, threads));
  const Way<T> own{own_weight.const_data_ptr<T>(), own_partner.const_data_ptr<int64_t>()};
  const Way<T> others{other_weight.const_data_ptr<T>(), other_partner.const_data_ptr<int64_t>()};
  launch(pair_gradient_kernel<T>, from.size(0) * slices, threads, 0, from.const_data_ptr<T>(), n, to.const_data_ptr<T>(), m, own,
         others, factor, slices, grad.mutable_data_ptr<T>());
}

std::tuple<Tensor, Tensor> chamfer_backward_cuda(const Tensor& grad1, const Tensor& grad2, const Tensor& a, const Tensor& b,
                                                 const Tensor& i1, const Tensor& i2) {
  const CUDAGuard guard(a.device());
  const Tensor p = to_compute(a), q = to_compute(b);
  const Tensor g1 = grad1.to(p.scalar_type()).contiguous(), g2 = grad2.to(p.scalar_type()).contiguous();
  const Tensor first = i1.contiguous(), second = i2.contiguous();
  Tensor grad_a = at::empty(p.sizes(), p.options()), grad_b = at::empty(q.sizes(), q.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_backward", [&] {
    // The derivative of a squared distance is twice the offset.
    start_pair_gradient<scalar_t>(p, q, g1, first, g2, second, 2, grad_a);
    start_pair_gradient<scalar_t>(q, p, g2, second, g1, first, 2, grad_b);
  });
  return {grad_a.to(a.scalar_type()), grad_b.to(b.scalar_type())};
}

constexpr double kSmallest = 1e-12;  // where the root of the L1 form is clamped, in squared units

// What a point adds to the sum of its direction, and the derivative of the mean of that direction in terms of half its squared
// distance.
template <typename T>
struct Term {
  T value, weight;

  __device__ Term(T sqdist, int count, bool root) {
    const T length = root ? sqrt(sqdist > T(kSmallest) ? sqdist : T(kSmallest)) : sqdist;
    value = length;
    weight = !root ? T(2) / T(count) : sqdist < T(kSmallest) ? T(0) : T(0.5) / T(count) / length;
  }
};

template <typename T>
__device__ inline T pair_loss(double forth, int n, double back, int m, bool root) {
  return T((forth / double(n) + back / double(m)) * (root ? 0.5 : 1.0));
}

// What the coordinates of a pair make of its loss and gradients.
template <typename T>
struct Health {
  bool nan, finite;

  __device__ T loss(T value) const { return nan ? T(NAN) : value; }
  __device__ T weight(T value) const { return finite ? value : T(NAN); }
};

// What is wrong with a coordinate: 2 if it is NaN, 1 if it is infinite, else 0.
template <typename T>
__device__ inline int flaw(T value) {
  return value != value ? 2 : value - value != 0 ? 1 : 0;
}

// Where the results of the loss go; a gradient that is not wanted is a null pointer.
template <typename T>
struct LossOutputs {
  T *loss, *grad_a, *grad_b;
};

constexpr int kPatchWarps = 8;

// A point of a patch and the weight of its own pair.
template <typename T>
struct __align__(16) Quad {
  T x, y, z, weight;
};

// What a warp keeps of a pair of patches.
template <typename T>
struct Patches {
  Quad<T> a[kWarp], b[kWarp];
  unsigned choosers_of_a[kWarp], choosers_of_b[kWarp];  // bit j: point j of the other patch has chosen this one
};

template <typename T>
__device__ inline Quad<T> load_point(const T* points, int count, Quad<T>* copy) {
  const int lane = lane_id();
  const T* row = points + 3 * (lane < count ? lane : count - 1);
  return copy[lane] = {row[0], row[1], row[2], T(0)};
}

// The nearest of `count` targets: its squared distance as bits, and who it is. NaN is never nearer.
template <typename T>
__device__ inline Bits<T> nearest_of_patch(const Quad<T>& point, const Quad<T>* targets, int count, int& who) {
  Bits<T> best = kInfinity<T>;
  who = 0;
#pragma unroll 4
  for (int j = 0; j < count; ++j) {
    const Quad<T> t = targets[j];
    const Bits<T> bits = to_bits(squared_distance(point.x - t.x, point.y - t.y, point.z - t.z));
    if (bits < best) best = bits, who = j;
  }
  return best;
}

// Lanes below `count` have chosen `who`; says so to those that were chosen.
__device__ inline void tell_chosen(int who, int count, unsigned* choosers) {
  const int lane = lane_id();
  const unsigned alike = __match_any_sync(kAllLanes, lane < count ? who : -1);
  if (lane < count && (alike & lanes_below(lane)) == 0) choosers[who] = alike;
}

// Writes the gradient of a point: through its own pair, and less that of the points of the other patch which have chosen it.
template <typename T>
__device__ inline void write_gradient(const Quad<T>& point, T weight, const Quad<T>& partner, unsigned choosers, const Quad<T>* others,
                                      T* out) {
  T x = 0, y = 0, z = 0;
  for (; choosers; choosers &= choosers - 1) {
    const Quad<T> o = others[__ffs(choosers) - 1];
    x -= o.weight * (o.x - point.x), y -= o.weight * (o.y - point.y), z -= o.weight * (o.z - point.z);
  }
  out[0] = weight * (point.x - partner.x) + x;
  out[1] = weight * (point.y - partner.y) + y;
  out[2] = weight * (point.z - partner.z) + z;
}

// Loss and gradients of pairs of at most 32 points each, a warp per pair.
template <typename T>
__global__ void __launch_bounds__(kPatchWarps * kWarp)
    patch_loss_kernel(const T* a, int n, const T* b, int m, int64_t pairs, bool root, LossOutputs<T> out) {
  __shared__ Patches<T> memory[kPatchWarps];
  Patches<T>& patches = memory[threadIdx.x / kWarp];
  const int64_t pair = int64_t(blockIdx.x) * kPatchWarps + threadIdx.x / kWarp;
  const int lane = lane_id();
  if (pair >= pairs) return;  // whole warps; they share nothing
  const Quad<T> mine_a = load_point(a + pair * n * 3, n, patches.a), mine_b = load_point(b + pair * m * 3, m, patches.b);
  patches.choosers_of_a[lane] = patches.choosers_of_b[lane] = 0;
  __syncwarp();
  int partner_of_a, partner_of_b;
  const Term<T> forth(from_bits(nearest_of_patch(mine_a, patches.b, m, partner_of_a)), n, root);
  const Term<T> back(from_bits(nearest_of_patch(mine_b, patches.a, n, partner_of_b)), m, root);
  const double forth_sum = warp_sum(lane < n ? double(forth.value) : 0.0), back_sum = warp_sum(lane < m ? double(back.value) : 0.0);
  const int flaws = flaw(mine_a.x) | flaw(mine_a.y) | flaw(mine_a.z) | flaw(mine_b.x) | flaw(mine_b.y) | flaw(mine_b.z);
  const Health<T> health{__any_sync(kAllLanes, flaws & 2) != 0, __any_sync(kAllLanes, flaws) == 0};
  if (lane == 0) out.loss[pair] = health.loss(pair_loss<T>(forth_sum, n, back_sum, m, root));
  if (!out.grad_a && !out.grad_b) return;
  __syncwarp();
  const T weight_of_a = health.weight(forth.weight), weight_of_b = health.weight(back.weight);
  patches.a[lane].weight = weight_of_a, patches.b[lane].weight = weight_of_b;
  tell_chosen(partner_of_a, n, patches.choosers_of_b);
  tell_chosen(partner_of_b, m, patches.choosers_of_a);
  __syncwarp();
  if (out.grad_a && lane < n) {
    write_gradient(mine_a, weight_of_a, patches.b[partner_of_a], patches.choosers_of_a[lane], patches.b,
                   out.grad_a + (pair * n + lane) * 3);
  }
  if (out.grad_b && lane < m) {
    write_gradient(mine_b, weight_of_b, patches.a[partner_of_b], patches.choosers_of_b[lane], patches.a,
                   out.grad_b + (pair * m + lane) * 3);
  }
}

constexpr int kTermThreads = 256;

// Sums the terms of a cloud's squared distances, by a whole block, and leaves weights in their place. Right in thread 0.
template <typename T>
__device__ inline double sum_terms(T* sqdist, int count, bool root, const Health<T>& health, double* slots) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kTermThreads) {
    const Term<T> term(sqdist[i], count, root);
    sum += double(term.value);
    sqdist[i] = health.weight(term.weight);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) slots[threadIdx.x / kWarp] = sum;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kTermThreads / kWarp; ++w) total += slots[w];
  return total;
}

template <typename T>
__device__ inline int flaws_of(const T* points, int count) {
  int flaws = 0;
  for (int64_t i = threadIdx.x; i < int64_t(count) * 3; i += kTermThreads) flaws |= flaw(points[i]);
  return flaws;
}

// The losses of clouds, a block for a pair, from the squared distances both ways, in whose place the weights of the pairs come.
template <typename T>
__global__ void __launch_bounds__(kTermThreads)
    cloud_terms_kernel(const T* a, int n, const T* b, int m, T* d1, T* d2, bool root, T* loss) {
  __shared__ double slots[2][kTermThreads / kWarp];
  const int64_t pair = blockIdx.x;
  const int flaws = flaws_of(a + pair * n * 3, n) | flaws_of(b + pair * m * 3, m);
  const Health<T> health{__syncthreads_or(flaws & 2) != 0, __syncthreads_or(flaws) == 0};
  const double forth = sum_terms(d1 + pair * n, n, root, health, slots[0]), back = sum_terms(d2 + pair * m, m, root, health, slots[1]);
  if (threadIdx.x == 0) loss[pair] = health.loss(pair_loss<T>(forth, n, back, m, root));
}

template <typename T>
void cloud_losses(const Tensor& a, const Tensor& b, bool root, Tensor& loss, Tensor& grad_a, Tensor& grad_b, bool want_a, bool want_b) {
  auto [d1, d2, i1, i2] = chamfer_cuda(a, b);
  launch(cloud_terms_kernel<T>, a.size(0), kTermThreads, 0, a.const_data_ptr<T>(), int(a.size(1)), b.const_data_ptr<T>(),
         int(b.size(1)), d1.template mutable_data_ptr<T>(), d2.template mutable_data_ptr<T>(), root, loss.mutable_data_ptr<T>());
  if (want_a) start_pair_gradient<T>(a, b, d1, i1, d2, i2, 1, grad_a);
  if (want_b) start_pair_gradient<T>(b, a, d2, i2, d1, i1, 1, grad_b);
}

std::tuple<Tensor, Tensor, Tensor> chamfer_loss_cuda(const Tensor& a, const Tensor& b, bool root, bool want_a, bool want_b) {
  const CUDAGuard guard(a.device());
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  Tensor loss = at::empty({B}, p.options());
  Tensor grad_a = at::empty({want_a ? B : 0, n, 3}, p.options()), grad_b = at::empty({want_b ? B : 0, m, 3}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_loss", [&] {
    if (std::max(n, m) > kWarp) return cloud_losses<scalar_t>(p, q, root, loss, grad_a, grad_b, want_a, want_b);
    const LossOutputs<scalar_t> out{loss.mutable_data_ptr<scalar_t>(), want_a ? grad_a.mutable_data_ptr<scalar_t>() : nullptr,
                                    want_b ? grad_b.mutable_data_ptr<scalar_t>() : nullptr};
    launch(patch_loss_kernel<scalar_t>, ceil_div(B, kPatchWarps), kPatchWarps * kWarp, 0, p.const_data_ptr<scalar_t>(), int(n),
           q.const_data_ptr<scalar_t>(), int(m), B, root, out);
  });
  return {loss, grad_a, grad_b};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) {
  m.impl("chamfer", chamfer_cuda);
  m.impl("chamfer_backward", chamfer_backward_cuda);
  m.impl("chamfer_loss", chamfer_loss_cuda);
}

}  // namespace m2ae
