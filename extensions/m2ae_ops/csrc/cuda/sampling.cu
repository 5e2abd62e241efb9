// Farthest point sampling, exact. A step of the greedy choice depends on the one before, so latency is all that counts:
//
// - up to 8,192 points: one block per cloud, coordinates and running distances in registers, one barrier a step;
// - up to 131,072 points on sm_90 and newer: a cluster of blocks per cloud, which write what each of them found straight into
//   the shared memory of all others, two barriers a step;
// - else, and in float64: one block per cloud that keeps running distances in global memory.
#include <c10/util/string_view.h>
#include <cooperative_groups.h>

#include "common.cuh"

namespace m2ae {
namespace {

namespace cg = cooperative_groups;

// Points are numbered by preference among equally far ones, so that ties go to the lowest position. The order of the published
// kernel is: smallest bit-reversed (index mod 2^bits), then smallest index; bits = 0 makes it that of the index. Every slot
// (index mod 2^bits) has `per_slot` positions, of which the last may be empty. Position 0 is index 0.
struct Layout {
  int count, positions, bits, per_slot;
  uint64_t reciprocal;  // ceil(2^64 / per_slot), 0 for per_slot = 1
  bool skip_near_origin;

  Layout(int count, bool skip_near_origin, bool by_slots) : count(count), bits(0), skip_near_origin(skip_near_origin) {
    while (by_slots && bits < 9 && (2 << bits) <= count) ++bits;
    per_slot = (count + (1 << bits) - 1) >> bits;
    positions = per_slot << bits;
    reciprocal = per_slot == 1 ? 0 : ~uint64_t(0) / per_slot + 1;
  }

  // May be `count` or more for an empty position.
  __device__ int index_of(int position) const {
    if (bits == 0) return position;
    const unsigned turned = per_slot == 1 ? position : unsigned(__umul64hi(reciprocal, position));
    return int(__brev(turned) >> (32 - bits)) + ((position - int(turned) * per_slot) << bits);
  }

  __device__ int position_of(int index) const {
    return int(__brev(unsigned(index) << (31 - bits) << 1)) * per_slot + (index >> bits);
  }
};

template <typename T> struct SignedBitsOf;
template <> struct SignedBitsOf<float> { using type = int32_t; };
template <> struct SignedBitsOf<double> { using type = int64_t; };

// The largest running distance, as bits, and the lowest position that has it. Points that may not be chosen stand at -1, whose
// bits are a negative number, below those of every distance.
template <typename T>
struct Farthest {
  typename SignedBitsOf<T>::type sqdist;
  unsigned position;
};

// What a lane without anything to offer says: the lowest number of all.
template <typename T>
__device__ inline Farthest<T> nobody() {
  return {typename SignedBitsOf<T>::type(Bits<T>(1) << (8 * sizeof(T) - 1)), ~0u};
}

template <typename T>
__device__ inline Farthest<T> warp_farthest(Farthest<T> own) {
  const auto most = warp_max(own.sqdist);
  return {most, warp_min(own.sqdist == most ? own.position : ~0u)};
}

// Combines what the warps have found, in every thread. The slots alternate between two halves from step to step, so that one
// barrier is enough: nobody writes to a half before all have read it, one barrier ago.
template <typename T, int kWarps>
__device__ inline Farthest<T> block_farthest(Farthest<T> of_warp, Farthest<T> (*slots)[kWarp], int step) {
  if (kWarps == 1) return of_warp;
  Farthest<T>* half = slots[step % 2];
  if (lane_id() == 0) half[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  return warp_farthest<T>(lane_id() < kWarps ? half[lane_id()] : nobody<T>());
}

constexpr float kStartDistance = 1e10f;

// Whether a point may be chosen: finite and, if so wished, not near the origin.
template <typename T>
__device__ inline bool eligible(T x, T y, T z, bool skip_near_origin) {
  // The difference of a value with itself is 0 unless it is NaN or infinite.
  if (!(x - x == 0 && y - y == 0 && z - z == 0)) return false;
  return !(skip_near_origin && squared_distance(x, y, z) <= T(1e-3));
}

// The points of a thread: position `first` + p * kThreads for p = 0..P-1.
template <int kThreads, int P>
struct OwnPoints {
  float x[P], y[P], z[P], running[P];

  // Fills the registers and `shared_points`, unless that is null, whose row 0 belongs to position `first` of thread 0.
  __device__ inline void load(const float* cloud, const Layout& layout, int first, float* shared_points) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int position = first + p * kThreads;
      const int index = position < layout.positions ? layout.index_of(position) : layout.count;
      const bool real = index < layout.count;
      const float* row = cloud + int64_t(real ? index : 0) * 3;
      x[p] = row[0], y[p] = row[1], z[p] = row[2];
      running[p] = real && eligible(x[p], y[p], z[p], layout.skip_near_origin) ? kStartDistance : -1.0f;
      if (shared_points) {
        float* copy = shared_points + 3 * (p * kThreads + int(threadIdx.x));
        copy[0] = x[p], copy[1] = y[p], copy[2] = z[p];
      }
    }
  }

  // Takes a new sample into account and returns the farthest point of the warp.
  __device__ inline Farthest<float> update(float qx, float qy, float qz, int first) {
    float most = -1.0f;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      // fminf passes over NaN, so a NaN sample changes nothing.
      running[p] = fminf(running[p], squared_distance(x[p] - qx, y[p] - qy, z[p] - qz));
      most = fmaxf(most, running[p]);
    }
    const int32_t own = int32_t(to_bits(most)), top = warp_max(own);
    unsigned position = ~0u;
    if (own == top) {
#pragma unroll
      for (int p = P - 1; p >= 0; --p) position = running[p] == most ? unsigned(first + p * kThreads) : position;
    }
    return {top, warp_min(position)};
  }
};

// One block per cloud. With kShared, a copy of the points in shared memory (positions x 3) serves the coordinates of a sample.
template <int kThreads, int P, bool kShared>
__global__ void __launch_bounds__(kThreads) fps_block(const float* points, Layout layout, int samples, int64_t* out) {
  __shared__ Farthest<float> slots[2][kWarp];
  float* shared_points = kShared ? dynamic_shared<float>() : nullptr;
  const float* cloud = points + int64_t(blockIdx.x) * layout.count * 3;
  int64_t* chosen = out + int64_t(blockIdx.x) * samples;
  const int first = threadIdx.x;
  OwnPoints<kThreads, P> own;
  own.load(cloud, layout, first, shared_points);
  if (threadIdx.x == 0) chosen[0] = 0;
  __syncthreads();
  int last = 0;
  for (int step = 1; step < samples; ++step) {
    const float* row = kShared ? shared_points + 3 * last : cloud + int64_t(layout.index_of(last)) * 3;
    const Farthest<float> of_warp = own.update(row[0], row[1], row[2], first);
    const Farthest<float> found = block_farthest<float, kThreads / kWarp>(of_warp, slots, step);
    last = found.sqdist < 0 ? 0 : int(found.position);  // with nobody to choose from, index 0 repeats
    if (threadIdx.x == 0) chosen[step] = layout.index_of(last);
  }
}

constexpr int kClusterThreads = 512, kLargestCluster = 16;

// What a block of a cluster has found, with its coordinates.
struct __align__(16) ClusterSlot {
  Farthest<float> found;
  float x, y, z;
};

struct ClusterMemory {
  ClusterSlot blocks[2][kLargestCluster];  // two halves, as above
  Farthest<float> warps[2][kWarp];
  float points[3];  // of the block, the first of all
};

// A cluster of blocks per cloud; block r holds positions r * kClusterThreads * P and on.
template <int P>
__global__ void __launch_bounds__(kClusterThreads) fps_cluster(const float* points, Layout layout, int samples, int64_t* out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kOwned = kClusterThreads * P;
  ClusterMemory& memory = *dynamic_shared<ClusterMemory>();
  cg::cluster_group cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), size = cluster.num_blocks();
  const int64_t b = blockIdx.x / size;
  const float* cloud = points + b * layout.count * 3;
  int64_t* chosen = out + b * samples;
  const int base = rank * kOwned, first = base + int(threadIdx.x);
  OwnPoints<kClusterThreads, P> own;
  own.load(cloud, layout, first, memory.points);
  const bool writer = rank == 0 && threadIdx.x == 0;
  if (writer) chosen[0] = 0;
  float qx = cloud[0], qy = cloud[1], qz = cloud[2];
  cluster.sync();  // all blocks run before one writes into another's memory
  for (int step = 1; step < samples; ++step) {
    const Farthest<float> of_warp = own.update(qx, qy, qz, first);
    const Farthest<float> here = block_farthest<float, kClusterThreads / kWarp>(of_warp, memory.warps, step);
    ClusterSlot* half = memory.blocks[step % 2];
    if (int(threadIdx.x) < size) {
      const float* row = memory.points + 3 * (here.position - base);
      *cluster.map_shared_rank(half + rank, threadIdx.x) = {here, row[0], row[1], row[2]};
    }
    cluster.sync();
    const Farthest<float> found = warp_farthest<float>(lane_id() < size ? half[lane_id()].found : nobody<float>());
    const bool some = found.sqdist >= 0;
    if (some) {
      const ClusterSlot& winner = half[found.position / kOwned];
      qx = winner.x, qy = winner.y, qz = winner.z;
    } else {
      qx = cloud[0], qy = cloud[1], qz = cloud[2];
    }
    if (writer) chosen[step] = some ? layout.index_of(found.position) : 0;
  }
#endif
}

constexpr int kStridedThreads = 1024;

// One block per cloud of any size; `running` (clouds x count) is scratch memory. A thread reads and writes only its own entries.
template <typename T>
__global__ void __launch_bounds__(kStridedThreads)
    fps_strided(const T* points, Layout layout, int samples, T* running, int64_t* out) {
  __shared__ Farthest<T> slots[2][kWarp];
  const T* cloud = points + int64_t(blockIdx.x) * layout.count * 3;
  T* own = running + int64_t(blockIdx.x) * layout.count;
  int64_t* chosen = out + int64_t(blockIdx.x) * samples;
  for (int i = threadIdx.x; i < layout.count; i += kStridedThreads) {
    const T* row = cloud + int64_t(i) * 3;
    own[i] = eligible(row[0], row[1], row[2], layout.skip_near_origin) ? T(1e10) : T(-1);
  }
  if (threadIdx.x == 0) chosen[0] = 0;
  int last = 0;
  for (int step = 1; step < samples; ++step) {
    const T* sample = cloud + int64_t(last) * 3;
    const T qx = sample[0], qy = sample[1], qz = sample[2];
    T most = T(-1);
    unsigned position = ~0u;
    for (int i = threadIdx.x; i < layout.count; i += kStridedThreads) {
      const T* row = cloud + int64_t(i) * 3;
      const T sqdist = squared_distance(row[0] - qx, row[1] - qy, row[2] - qz), before = own[i];
      const T now = sqdist < before ? sqdist : before;
      own[i] = now;
      const unsigned here = layout.position_of(i);
      if (now > most || (now == most && here < position)) most = now, position = here;
    }
    const Farthest<T> mine = {typename SignedBitsOf<T>::type(to_bits(most)), position};
    const Farthest<T> found = block_farthest<T, kStridedThreads / kWarp>(warp_farthest<T>(mine), slots, step);
    last = found.sqdist < 0 ? 0 : layout.index_of(found.position);
    if (threadIdx.x == 0) chosen[step] = last;
  }
}

template <int kThreads, int P>
void start_block(const Tensor& points, const Layout& layout, int samples, Tensor& out) {
  constexpr size_t bytes = size_t(kThreads) * P * 3 * sizeof(float), with_slots = bytes + 1024, on_all_devices = 64 * 1024;
  const float* data = points.const_data_ptr<float>();
  int64_t* chosen = out.mutable_data_ptr<int64_t>();
  if constexpr (with_slots > on_all_devices) {
    if (with_slots > size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
      return launch(fps_block<kThreads, P, false>, points.size(0), kThreads, 0, data, layout, samples, chosen);
    }
  }
  launch(fps_block<kThreads, P, true>, points.size(0), kThreads, bytes, data, layout, samples, chosen);
}

// Starts clusters of `size` blocks, if the device can run them.
template <int P>
bool start_clusters(const Tensor& points, const Layout& layout, int samples, unsigned size, Tensor& out) {
  const auto kernel = fps_cluster<P>;
  const size_t bytes = sizeof(ClusterMemory) + size_t(kClusterThreads) * P * 3 * sizeof(float);
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  if (size > 8) C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {size, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(points.size(0) * size));
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = c10::cuda::getCurrentCUDAStream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  int active = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&active, kernel, &config));
  if (active == 0) return false;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, points.const_data_ptr<float>(), layout, samples,
                                    out.mutable_data_ptr<int64_t>()));
  return true;
}

unsigned blocks_for(int positions, int per_block) {
  unsigned size = 1;
  while (int64_t(size) * per_block < positions) size *= 2;
  return size;
}

// Returns whether a cluster does the work: half-filled registers if there are processors to spare, else full ones.
bool try_clusters(const Tensor& points, const Layout& layout, int samples, Tensor& out) {
  const int64_t B = points.size(0);
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 9 || B * kLargestCluster > INT_MAX) return false;
  const unsigned wide = blocks_for(layout.positions, kClusterThreads * 8), narrow = blocks_for(layout.positions, kClusterThreads * 16);
  const bool spare = B * wide <= device_attribute(cudaDevAttrMultiProcessorCount);
  if (spare && wide <= kLargestCluster && start_clusters<8>(points, layout, samples, wide, out)) return true;
  return narrow <= kLargestCluster && start_clusters<16>(points, layout, samples, narrow, out);
}

template <typename T>
void start_strided(const Tensor& points, const Layout& layout, int samples, Tensor& out) {
  Tensor running = at::empty({points.size(0), points.size(1)}, points.options());
  launch(fps_strided<T>, points.size(0), kStridedThreads, 0, points.const_data_ptr<T>(), layout, samples,
         running.mutable_data_ptr<T>(), out.mutable_data_ptr<int64_t>());
}

Tensor fps_cuda(const Tensor& points, int64_t samples, bool skip_near_origin, c10::string_view tie_break) {
  const CUDAGuard guard(points.device());
  const Tensor p = to_compute(points);
  const int64_t B = p.size(0);
  Tensor out = at::empty({B, samples}, p.options().dtype(at::kLong));
  if (B == 0) return out;
  const int S = small(samples, "fps", "num_samples");
  const Layout layout(small(p.size(1), "fps", "points"), skip_near_origin, tie_break == "pointnet2");
  if (p.scalar_type() == at::kDouble) {
    start_strided<double>(p, layout, S, out);
  } else if (layout.positions <= 128) {
    start_block<32, 4>(p, layout, S, out);
  } else if (layout.positions <= 512) {
    start_block<128, 4>(p, layout, S, out);
  } else if (layout.positions <= 1024) {
    start_block<256, 4>(p, layout, S, out);
  } else if (layout.positions <= 2048) {
    start_block<256, 8>(p, layout, S, out);
  } else if (layout.positions <= 4096) {
    start_block<512, 8>(p, layout, S, out);
  } else if (layout.positions <= 8192) {
    start_block<1024, 8>(p, layout, S, out);
  } else if (!try_clusters(p, layout, S, out)) {
    start_strided<float>(p, layout, S, out);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) { m.impl("fps", fps_cuda); }

}  // namespace m2ae
