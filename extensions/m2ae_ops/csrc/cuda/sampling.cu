// Farthest point sampling, exact. A step of the greedy choice depends on the one before, so latency is all that counts:
//
// - up to 8,192 points: one block per cloud, coordinates and running distances in registers, one barrier a step;
// - up to 131,072 points on sm_90 and newer: a cluster of blocks per cloud, which write what each of them found straight into
//   the shared memory of all others, two barriers a step;
// - else, and in float64: one block per cloud that keeps running distances in global memory.
#include <c10/util/string_view.h>
#include <cooperative_groups.h>

#include <vector>

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

// What nested sampling asks of a kernel. A sample of a sample is its beginning, 0, 1, 2, ..., if every one of its points was the only
// farthest one and no point was repeated.
struct Nesting {
  const uint8_t* redo = nullptr;  // per cloud: 0 if its sample is 0, 1, 2, ... and nothing is left to do
  uint8_t* doubtful = nullptr;    // per cloud: set to whether that cannot be said of the samples of this sample
  int watched = 0;                // steps in which several farthest points are a reason for doubt
};

// Returns whether the cloud has its sample already, after writing it, by `threads` threads.
__device__ inline bool is_settled(const Nesting& nesting, int64_t cloud, int samples, int threads, int64_t* chosen) {
  if (!nesting.redo || nesting.redo[cloud]) return false;
  for (int i = threadIdx.x; i < samples; i += threads) chosen[i] = i;
  return true;
}

// Where ties are watched for, a position is doubled and its lowest bit says whether others are as far.
template <bool kWatch>
__device__ inline unsigned plain_position(unsigned position) {
  return kWatch ? position / 2 : position;
}

// Combines what the warps have found, in every thread. The slots alternate between two halves from step to step, so that one
// barrier is enough: nobody writes to a half before all have read it, one barrier ago.
template <typename T, int kWarps, bool kWatch = false>
__device__ inline Farthest<T> block_farthest(Farthest<T> of_warp, Farthest<T> (*slots)[kWarp], int step) {
  if (kWarps == 1) return of_warp;
  Farthest<T>* half = slots[step % 2];
  if (lane_id() == 0) half[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  const Farthest<T> own = lane_id() < kWarps ? half[lane_id()] : nobody<T>();
  Farthest<T> found = warp_farthest<T>(own);
  if (kWatch && __popc(__ballot_sync(kAllLanes, own.sqdist == found.sqdist)) > 1) found.position |= 1;
  return found;
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
  template <bool kWatch = false>
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
    int hits = 0;
    if (own == top) {
#pragma unroll
      for (int p = P - 1; p >= 0; --p) {
        position = running[p] == most ? unsigned(first + p * kThreads) : position;
        hits += running[p] == most;
      }
    }
    position = warp_min(position);
    if (!kWatch) return {top, position};
    const bool tied = __popc(__ballot_sync(kAllLanes, hits > 0)) > 1 || __any_sync(kAllLanes, hits > 1);
    return {top, 2 * position + tied};
  }
};

// One block per cloud. With kShared, a copy of the points in shared memory (positions x 3) serves the coordinates of a sample.
template <int kThreads, int P, bool kShared, bool kWatch>
__global__ void __launch_bounds__(kThreads)
    fps_block(const float* points, Layout layout, int samples, Nesting nesting, int64_t* out) {
  __shared__ Farthest<float> slots[2][kWarp];
  float* shared_points = kShared ? dynamic_shared<float>() : nullptr;
  const float* cloud = points + int64_t(blockIdx.x) * layout.count * 3;
  int64_t* chosen = out + int64_t(blockIdx.x) * samples;
  if (is_settled(nesting, blockIdx.x, samples, kThreads, chosen)) return;
  const int first = threadIdx.x;
  OwnPoints<kThreads, P> own;
  own.load(cloud, layout, first, shared_points);
  if (threadIdx.x == 0) chosen[0] = 0;
  __syncthreads();
  int last = 0;
  bool doubtful = false;
  for (int step = 1; step < samples; ++step) {
    const float* row = kShared ? shared_points + 3 * last : cloud + int64_t(layout.index_of(last)) * 3;
    const Farthest<float> of_warp = own.template update<kWatch>(row[0], row[1], row[2], first);
    const Farthest<float> found = block_farthest<float, kThreads / kWarp, kWatch>(of_warp, slots, step);
    last = found.sqdist < 0 ? 0 : int(plain_position<kWatch>(found.position));  // with nobody to choose from, index 0 repeats
    if (threadIdx.x == 0) chosen[step] = layout.index_of(last);
    if (kWatch) doubtful |= found.sqdist <= 0 || (step < nesting.watched && found.position % 2);
  }
  if (kWatch && threadIdx.x == 0) nesting.doubtful[blockIdx.x] = doubtful;
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
__global__ void __launch_bounds__(kClusterThreads)
    fps_cluster(const float* points, Layout layout, int samples, Nesting nesting, int64_t* out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kOwned = kClusterThreads * P;
  ClusterMemory& memory = *dynamic_shared<ClusterMemory>();
  cg::cluster_group cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), size = cluster.num_blocks();
  const int64_t b = blockIdx.x / size;
  const float* cloud = points + b * layout.count * 3;
  int64_t* chosen = out + b * samples;
  if (is_settled(nesting, b, samples, kClusterThreads, chosen)) return;  // all blocks of the cluster
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
    fps_strided(const T* points, Layout layout, int samples, Nesting nesting, T* running, int64_t* out) {
  __shared__ Farthest<T> slots[2][kWarp];
  const T* cloud = points + int64_t(blockIdx.x) * layout.count * 3;
  T* own = running + int64_t(blockIdx.x) * layout.count;
  int64_t* chosen = out + int64_t(blockIdx.x) * samples;
  if (is_settled(nesting, blockIdx.x, samples, kStridedThreads, chosen)) return;
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

// What a launch needs to know besides the points.
struct Task {
  Layout layout;
  int samples;
  Nesting nesting;
  int64_t* out;
};

template <int kThreads, int P, bool kWatch>
void start_block(const Tensor& points, const Task& task) {
  constexpr size_t bytes = size_t(kThreads) * P * 3 * sizeof(float), with_slots = bytes + 1024, on_all_devices = 64 * 1024;
  auto kernel = fps_block<kThreads, P, true, kWatch>;
  size_t shared = bytes;
  if constexpr (with_slots > on_all_devices) {
    if (with_slots > size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
      kernel = fps_block<kThreads, P, false, kWatch>, shared = 0;
    }
  }
  launch(kernel, points.size(0), kThreads, shared, points.const_data_ptr<float>(), task.layout, task.samples, task.nesting, task.out);
}

constexpr int kBlockPositions = 8192;  // what one block holds in registers

template <bool kWatch>
void start_blocks(const Tensor& points, const Task& task) {
  const int positions = task.layout.positions;
  if (positions <= 128) return start_block<32, 4, kWatch>(points, task);
  if (positions <= 512) return start_block<128, 4, kWatch>(points, task);
  if (positions <= 1024) return start_block<256, 4, kWatch>(points, task);
  if (positions <= 2048) return start_block<256, 8, kWatch>(points, task);
  if (positions <= 4096) return start_block<512, 8, kWatch>(points, task);
  start_block<1024, 8, kWatch>(points, task);
}

// Starts clusters of `size` blocks, if the device can run them.
template <int P>
bool start_clusters(const Tensor& points, const Task& task, int size) {
  const size_t bytes = sizeof(ClusterMemory) + size_t(kClusterThreads) * P * 3 * sizeof(float);
  return launch_clusters(fps_cluster<P>, points.size(0), size, kClusterThreads, bytes, points.const_data_ptr<float>(), task.layout,
                         task.samples, task.nesting, task.out);
}

int blocks_for(int positions, int per_block) {
  int size = 1;
  while (int64_t(size) * per_block < positions) size *= 2;
  return size;
}

// Returns whether a cluster does the work: half-filled registers if there are processors to spare, else full ones.
bool try_clusters(const Tensor& points, const Task& task) {
  const int positions = task.layout.positions;
  const int wide = blocks_for(positions, kClusterThreads * 8), narrow = blocks_for(positions, kClusterThreads * 16);
  const bool spare = points.size(0) * wide <= device_attribute(cudaDevAttrMultiProcessorCount);
  if (spare && wide <= kLargestCluster && start_clusters<8>(points, task, wide)) return true;
  return narrow <= kLargestCluster && start_clusters<16>(points, task, narrow);
}

template <typename T>
void start_strided(const Tensor& points, const Task& task) {
  Tensor running = at::empty({points.size(0), points.size(1)}, points.options());
  launch(fps_strided<T>, points.size(0), kStridedThreads, 0, points.const_data_ptr<T>(), task.layout, task.samples, task.nesting,
         running.mutable_data_ptr<T>(), task.out);
}

bool fits_blocks(const Tensor& points, const Layout& layout) {
  return points.scalar_type() == at::kFloat && layout.positions <= kBlockPositions;
}

// Samples all clouds, contiguous and in the precision to compute in. Only blocks can watch for doubt.
void sample(const Tensor& points, const Task& task) {
  if (points.size(0) == 0) return;
  if (fits_blocks(points, task.layout)) {
    task.nesting.doubtful ? start_blocks<true>(points, task) : start_blocks<false>(points, task);
  } else if (points.scalar_type() == at::kDouble) {
    start_strided<double>(points, task);
  } else if (!try_clusters(points, task)) {
    start_strided<float>(points, task);
  }
}

Layout layout_of(const char* op, const Tensor& points, bool skip_near_origin, c10::string_view tie_break) {
  return Layout(small(points.size(1), op, "points"), skip_near_origin, tie_break == "pointnet2");
}

Tensor fps_cuda(const Tensor& points, int64_t samples, bool skip_near_origin, c10::string_view tie_break) {
  const CUDAGuard guard(points.device());
  const Tensor p = to_compute(points);
  Tensor out = at::empty({p.size(0), samples}, p.options().dtype(at::kLong));
  const Layout layout = layout_of("fps", p, skip_near_origin, tie_break);
  sample(p, {layout, small(samples, "fps", "num_samples"), Nesting(), out.mutable_data_ptr<int64_t>()});
  return out;
}

// The first sample says of every cloud whether the others are its beginning; the clouds of which it does not are sampled scale
// by scale. All is decided on the device.
std::vector<Tensor> fps_nested_cuda(const Tensor& points, at::IntArrayRef samples, bool skip_near_origin, c10::string_view tie_break) {
  const CUDAGuard guard(points.device());
  Tensor members = to_compute(points);
  const int64_t B = members.size(0);
  Layout layout = layout_of("fps_nested", members, skip_near_origin, tie_break);
  const bool watch = samples.size() > 1 && std::is_sorted(samples.rbegin(), samples.rend()) && fits_blocks(members, layout);
  Tensor doubtful = at::empty({B}, members.options().dtype(at::kByte));
  if (!watch) doubtful.fill_(1);
  std::vector<Tensor> out;
  for (size_t scale = 0; scale < samples.size(); ++scale) {
    Nesting nesting;
    if (scale == 0 && watch) {
      nesting.doubtful = doubtful.mutable_data_ptr<uint8_t>(), nesting.watched = small(samples[1], "fps_nested", "num_samples");
    } else if (scale > 0) {
      members = members.gather(1, out.back().unsqueeze(-1).expand({-1, -1, 3})).contiguous();
      layout = layout_of("fps_nested", members, skip_near_origin, tie_break);
      nesting.redo = doubtful.const_data_ptr<uint8_t>();
    }
    out.push_back(at::empty({B, samples[scale]}, members.options().dtype(at::kLong)));
    sample(members, {layout, small(samples[scale], "fps_nested", "num_samples"), nesting, out.back().mutable_data_ptr<int64_t>()});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) {
  m.impl("fps", fps_cuda);
  m.impl("fps_nested", fps_nested_cuda);
}

}  // namespace m2ae
