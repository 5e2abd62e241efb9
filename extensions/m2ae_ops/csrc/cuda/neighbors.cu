// Neighbour search: k nearest with a warp for two queries, three nearest, and balls in index order.
#include "bitonic.cuh"
#include "common.cuh"
#include "nearest.cuh"

namespace m2ae {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kChunks = 32, kTile = kChunks * kWarp;  // a tile gives each lane one point per chunk
constexpr int kChunkGroup = 8;                        // chunks that are left out together when a tile is not full

// Copies `count` points to shared memory and fills up to a multiple of `multiple` with NaN.
template <typename T>
__device__ inline void load_tile(const T* from, int count, int multiple, T* tile) {
  const int padded = (count + multiple - 1) / multiple * multiple;
  for (int i = threadIdx.x; i < 3 * padded; i += kThreads) tile[i] = i < 3 * count ? from[i] : T(NAN);
}

template <typename T>
__device__ inline Bits<T> distance_bits(const T* tile, int j, T qx, T qy, T qz) {
  return to_bits(squared_distance(qx - tile[3 * j], qy - tile[3 * j + 1], qz - tile[3 * j + 2]));
}

// The search of one query. A tile's distances lie in registers. Of the first tile, the minima of 32 * H groups of points are
// sorted: the k-th of them bounds the k-th smallest distance, and few points lie within it. Of later tiles, only what beats the
// k-th so far counts. Those points go through a buffer, 32 at a time, into a sorted list.
template <typename T, int G, int H>
struct Search {
  T x, y, z;
  Key<T> list[G];
  Key<T> above;  // keys up to this one were found in an earlier round
  bool later;    // whether there was an earlier round

  __device__ inline void start_round() {
#pragma unroll
    for (int g = 0; g < G; ++g) list[g] = kLastKey<T>;
  }

  // What a squared distance must stay below to be looked at; at least `wanted` points of this tile, or all, stay below a bound
  // from the first tile.
  __device__ inline Bits<T> limit(const Bits<T> (&bits)[kChunks], Key<T> worst, int wanted) const {
    if (worst != kLastKey<T>) return Bits<T>(worst >> 32);
    if (later) return kNobody<T>;
    Bits<T> minima[H];
#pragma unroll
    for (int h = 0; h < H; ++h) {
      minima[h] = bits[h];
#pragma unroll
      for (int i = h + H; i < kChunks; i += H) minima[h] = bits[i] < minima[h] ? bits[i] : minima[h];
    }
    bitonic_sort<H>(minima);
    const Bits<T> bound = element<H>(minima, wanted - 1);
    return bound < kInfinity<T> ? bound + 1 : kNobody<T>;
  }

  __device__ inline void take(const Bits<T> (&bits)[kChunks], const T* tile, int start, int count, int wanted, Key<T>* buffer) {
    Key<T> worst = element<G>(list, wanted - 1);
    const Bits<T> below = limit(bits, worst, wanted);
    unsigned mine = 0;  // chunks whose point of this lane is near enough
#pragma unroll
    for (int i = 0; i < kChunks; ++i) mine |= unsigned(bits[i] < below) << i;
    int waiting = 0;
    while (__any_sync(kAllLanes, mine != 0)) {
      Key<T> key = kLastKey<T>;
      if (mine) {
        const int j = (__ffs(mine) - 1) * kWarp + lane_id();
        mine &= mine - 1;
        if (j < count) key = make_key<T>(distance_bits(tile, j, x, y, z), start + j);
      }
      const bool accepted = key < worst && !(later && key <= above);
      const unsigned voters = __ballot_sync(kAllLanes, accepted);
      if (accepted) buffer[waiting + __popc(voters & lanes_below(lane_id()))] = key;
      waiting += __popc(voters);
      __syncwarp();
      if (waiting >= kWarp) {
        const Key<T> fresh = buffer[lane_id()], rest = buffer[kWarp + lane_id()];
        __syncwarp();
        waiting -= kWarp;
        if (lane_id() < waiting) buffer[lane_id()] = rest;
        __syncwarp();
        merge_into<G>(list, fresh);
        worst = element<G>(list, wanted - 1);
      }
    }
    if (waiting) merge_into<G>(list, lane_id() < waiting ? buffer[lane_id()] : kLastKey<T>);
    __syncwarp();
  }
};

// A warp searches for R queries at once, which share the reads of the points. Lists hold 32 * G keys; more neighbours take
// several rounds. `slices` blocks serve a cloud.
template <typename T, int G, int H, int R>
__global__ void __launch_bounds__(kThreads) knn_kernel(const T* query, int queries, const T* support, int count, int k,
                                                       int slices, T* sqdist, int64_t* idx) {
  __shared__ T tile[kTile * 3];
  __shared__ Key<T> buffers[kWarps][2 * kWarp];
  const int64_t b = blockIdx.x / slices;
  const int warp = threadIdx.x / kWarp, lane = lane_id();
  const int first = (int(blockIdx.x % slices) * kWarps + warp) * R;
  const T* cloud = support + b * count * 3;
  Search<T, G, H> search[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const T* row = query + (b * queries + (first + r < queries ? first + r : queries - 1)) * 3;
    search[r].x = row[0], search[r].y = row[1], search[r].z = row[2], search[r].above = 0;
  }
  for (int done = 0; done < k; done += kWarp * G) {
    const int wanted = k - done < kWarp * G ? k - done : kWarp * G;
#pragma unroll
    for (int r = 0; r < R; ++r) search[r].later = done > 0, search[r].start_round();
    for (int start = 0; start < count; start += kTile) {
      const int here = count - start < kTile ? count - start : kTile;
      __syncthreads();
      load_tile(cloud + int64_t(start) * 3, here, kChunkGroup * kWarp, tile);
      __syncthreads();
      Bits<T> bits[R][kChunks];
#pragma unroll
      for (int group = 0; group < kChunks; group += kChunkGroup) {
        const bool some = group * kWarp < here;
#pragma unroll
        for (int i = group; i < group + kChunkGroup; ++i) {
#pragma unroll
          for (int r = 0; r < R; ++r) {
            bits[r][i] = some ? distance_bits(tile, i * kWarp + lane, search[r].x, search[r].y, search[r].z) : kNobody<T>;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) search[r].take(bits[r], tile, start, here, wanted, buffers[warp]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      search[r].above = element<G>(search[r].list, wanted - 1);
      const int64_t at = (b * queries + first + r) * k + done;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const int e = g * kWarp + lane;
        if (e >= wanted || first + r >= queries) continue;
        sqdist[at + e] = key_sqdist<T>(search[r].list[g]);
        idx[at + e] = key_index<T>(search[r].list[g]);
      }
    }
  }
}

template <typename T, int G, int H>
void start_knn(const Tensor& query, const Tensor& support, int k, Tensor& sqdist, Tensor& idx) {
  constexpr int R = sizeof(T) == 4 ? 2 : 1;
  const int Q = small(query.size(1), "knn", "queries"), N = small(support.size(1), "knn", "support");
  const int slices = int(ceil_div(Q, kWarps * R));
  launch(knn_kernel<T, G, H, R>, query.size(0) * slices, kThreads, 0, query.const_data_ptr<T>(), Q, support.const_data_ptr<T>(),
         N, k, slices, sqdist.mutable_data_ptr<T>(), idx.mutable_data_ptr<int64_t>());
}

std::tuple<Tensor, Tensor> knn_cuda(const Tensor& query, const Tensor& support, int64_t k) {
  const CUDAGuard guard(query.device());
  const Tensor q = to_compute(query), s = to_compute(support);
  TORCH_CHECK_VALUE(k >= 1 && k <= s.size(1), "knn: k=", k, " is outside 1..", s.size(1), ", the number of support points");
  const int64_t B = q.size(0), Q = q.size(1);
  Tensor sqdist = at::empty({B, Q, k}, q.options()), idx = at::empty({B, Q, k}, q.options().dtype(at::kLong));
  if (Q == 0) return {sqdist, idx};
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::knn", [&] {
    // More groups than neighbours make a tighter bound.
    if (k <= 16) {
      start_knn<scalar_t, 1, 1>(q, s, int(k), sqdist, idx);
    } else if (k <= 32) {
      start_knn<scalar_t, 1, 2>(q, s, int(k), sqdist, idx);
    } else if (k <= 64) {
      start_knn<scalar_t, 2, 4>(q, s, int(k), sqdist, idx);
    } else {
      start_knn<scalar_t, 4, 8>(q, s, int(k), sqdist, idx);
    }
  });
  return {sqdist, idx};
}

std::tuple<Tensor, Tensor> three_nn_cuda(const Tensor& query, const Tensor& support) {
  const CUDAGuard guard(query.device());
  const Tensor q = to_compute(query), s = to_compute(support);
  const int64_t B = q.size(0), Q = q.size(1);
  Tensor sqdist = at::empty({B, Q, 3}, q.options()), idx = at::empty({B, Q, 3}, q.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::three_nn", [&] { nearest_all<scalar_t, 3>(q, s, sqdist, idx, "three_nn"); });
  return {sqdist, idx};
}

// A warp goes through the points in index order until it has k. `slices` blocks serve a cloud.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ball_kernel(const T* query, int queries, const T* support, int count, T limit, int k, int slices, int64_t* idx) {
  __shared__ T tile[kTile * 3];
  const int64_t b = blockIdx.x / slices;
  const int q = int(blockIdx.x % slices) * kWarps + int(threadIdx.x / kWarp), lane = lane_id();
  const bool real = q < queries;
  const T* row = query + (b * queries + (real ? q : queries - 1)) * 3;
  const T qx = row[0], qy = row[1], qz = row[2];
  const T* cloud = support + b * count * 3;
  int64_t* chosen = idx + (b * queries + q) * k;
  int found = real ? 0 : k, filling = 0;
  for (int start = 0; start < count; start += kTile) {
    if (!__syncthreads_or(found < k)) break;
    const int here = count - start < kTile ? count - start : kTile;
    load_tile(cloud + int64_t(start) * 3, here, kWarp, tile);
    __syncthreads();
    for (int i = 0; i < here && found < k; i += kWarp) {
      // The padding is NaN and never a hit.
      const int j = i + lane;
      const bool hit = squared_distance(qx - tile[3 * j], qy - tile[3 * j + 1], qz - tile[3 * j + 2]) < limit;
      const unsigned hits = __ballot_sync(kAllLanes, hit);
      const int place = found + __popc(hits & lanes_below(lane));
      if (hit && place < k) chosen[place] = start + j;
      if (found == 0 && hits) filling = start + i + __ffs(hits) - 1;
      found += __popc(hits);
    }
  }
  if (!real) return;
  for (int place = found + lane; place < k; place += kWarp) chosen[place] = filling;
}

Tensor ball_query_cuda(const Tensor& query, const Tensor& support, double radius, int64_t k) {
  const CUDAGuard guard(query.device());
  const Tensor q = to_compute(query), s = to_compute(support);
  const int64_t B = q.size(0);
  const int Q = small(q.size(1), "ball_query", "queries"), N = small(s.size(1), "ball_query", "support");
  Tensor idx = at::empty({B, Q, k}, q.options().dtype(at::kLong));
  const int slices = int(ceil_div(Q, kWarps));
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::ball_query", [&] {
    const scalar_t limit = scalar_t(radius) * scalar_t(radius);
    launch(ball_kernel<scalar_t>, B * slices, kThreads, 0, q.const_data_ptr<scalar_t>(), Q, s.const_data_ptr<scalar_t>(), N, limit,
           small(k, "ball_query", "k"), slices, idx.mutable_data_ptr<int64_t>());
  });
  return idx;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) {
  m.impl("knn", knn_cuda);
  m.impl("three_nn", three_nn_cuda);
  m.impl("ball_query", ball_query_cuda);
}

}  // namespace m2ae
