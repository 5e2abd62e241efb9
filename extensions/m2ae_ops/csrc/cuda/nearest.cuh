// The nearest K of all targets for every query, for small K.
#pragma once

#include "common.cuh"

namespace m2ae {
namespace {

constexpr int kNearestTile = 1024, kNearestThreads = 128;
constexpr int kUnrolled = 4;  // targets in a step: their coordinates come in whole 16-byte reads

// The K smallest squared distances so far, ascending, as bits; of equal ones the first stays first.
template <typename T, int K>
struct Shortlist {
  Bits<T> sqdist[K];
  int who[K];

  __device__ inline Shortlist() {
#pragma unroll
    for (int r = 0; r < K; ++r) sqdist[r] = kNobody<T>, who[r] = 0;
  }

  // Indices must come in ascending order.
  __device__ inline void offer(Bits<T> bits, int index) {
    if (bits >= sqdist[K - 1]) return;
#pragma unroll
    for (int r = K - 1; r >= 0; --r) {
      const bool shift = r > 0 && bits < sqdist[r > 0 ? r - 1 : 0];
      if (shift) {
        sqdist[r] = sqdist[r > 0 ? r - 1 : 0], who[r] = who[r > 0 ? r - 1 : 0];
      } else if (bits < sqdist[r]) {
        sqdist[r] = bits, who[r] = index;
      }
    }
  }
};

// kLanes neighbouring threads share a query and take turns at the targets. A block serves `blockDim.x / kLanes` queries of one
// cloud; `slices` blocks serve a cloud.
template <typename T, int K, int kLanes>
__global__ void __launch_bounds__(kNearestThreads)
    nearest_kernel(const T* query, int queries, const T* target, int targets, int slices, T* sqdist, int64_t* idx) {
  __shared__ __align__(16) T tile[kNearestTile * 3];
  const int64_t b = blockIdx.x / slices;
  const int q = int(blockIdx.x % slices) * int(blockDim.x / kLanes) + int(threadIdx.x / kLanes), lane = threadIdx.x % kLanes;
  const T* row = query + (b * queries + (q < queries ? q : queries - 1)) * 3;
  const T qx = row[0], qy = row[1], qz = row[2];
  const T* cloud = target + b * targets * 3;
  Shortlist<T, K> best;
  for (int start = 0; start < targets; start += kNearestTile) {
    const int count = targets - start < kNearestTile ? targets - start : kNearestTile;
    constexpr int kStep = kUnrolled * kLanes;
    const int padded = (count + kStep - 1) / kStep * kStep;
    __syncthreads();
    // Padding is NaN: infinitely far, and after all real targets.
    for (int i = threadIdx.x; i < 3 * padded; i += blockDim.x) tile[i] = i < 3 * count ? cloud[int64_t(start) * 3 + i] : T(NAN);
    __syncthreads();
    for (int i = 0; i < padded; i += kStep) {
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        const int j = i + u * kLanes + lane;
        const Bits<T> bits = to_bits(squared_distance(qx - tile[3 * j], qy - tile[3 * j + 1], qz - tile[3 * j + 2]));
        best.offer(bits < kInfinity<T> ? bits : kInfinity<T>, start + j);
      }
    }
  }
  Key<T> keys[K];
#pragma unroll
  for (int r = 0; r < K; ++r) keys[r] = best.sqdist[r] == kNobody<T> ? kLastKey<T> : make_key<T>(best.sqdist[r], best.who[r]);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    Key<T> others[K];
#pragma unroll
    for (int r = 0; r < K; ++r) others[r] = shuffle_xor(keys[r], step);
#pragma unroll
    for (int o = 0; o < K; ++o) {
      Key<T> moving = others[o];
#pragma unroll
      for (int r = 0; r < K; ++r) {
        const Key<T> here = keys[r];
        keys[r] = moving < here ? moving : here;
        moving = moving < here ? here : moving;
      }
    }
  }
  if (lane != 0 || q >= queries) return;
  const int64_t at = (b * queries + q) * K;
#pragma unroll
  for (int r = 0; r < K; ++r) {
    // With fewer than K targets the nearest one fills the gap, infinitely far.
    const bool real = r < targets;
    sqdist[at + r] = real ? key_sqdist<T>(keys[r]) : from_bits(kInfinity<T>);
    idx[at + r] = key_index<T>(real ? keys[r] : keys[0]);
  }
}

template <typename T, int K, int kLanes>
void start_nearest(const Tensor& query, const Tensor& target, Tensor& sqdist, Tensor& idx, const char* op) {
  const int Q = small(query.size(1), op, "queries"), M = small(target.size(1), op, "targets");
  const int threads = kLanes == 1 && Q <= 32 ? 32 : kLanes == 1 && Q <= 64 ? 64 : kNearestThreads;
  const int slices = int(ceil_div(Q, threads / kLanes));
  launch(nearest_kernel<T, K, kLanes>, query.size(0) * slices, threads, 0, query.const_data_ptr<T>(), Q,
         target.const_data_ptr<T>(), M, slices, sqdist.mutable_data_ptr<T>(), idx.mutable_data_ptr<int64_t>());
}

// Contiguous (B, Q, 3) and (B, M, 3) to sqdist and idx, K a query. Few queries are shared among several threads each.
template <typename T, int K>
void nearest_all(const Tensor& query, const Tensor& target, Tensor& sqdist, Tensor& idx, const char* op) {
  const int64_t room = int64_t(device_attribute(cudaDevAttrMultiProcessorCount)) * 2048, threads = query.size(0) * query.size(1);
  const int64_t M = target.size(1);
  if (M >= 512 && threads * 32 <= room) return start_nearest<T, K, 32>(query, target, sqdist, idx, op);
  if (M >= 64 && threads * 4 <= room) return start_nearest<T, K, 4>(query, target, sqdist, idx, op);
  start_nearest<T, K, 1>(query, target, sqdist, idx, op);
}

}  // namespace
}  // namespace m2ae
