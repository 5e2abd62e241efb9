// What the CUDA files share: types and the steps of a warp; launching is in launch.cuh.
//
// Distances must not be contracted to fused multiply-adds: the build passes --fmad=false to every file.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "launch.cuh"

namespace m2ae {

using at::Tensor;
using c10::cuda::CUDAGuard;

// Half precision is computed in float32, float64 in float64.
inline at::ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline Tensor to_compute(const Tensor& t) { return t.to(compute_type(t)).contiguous(); }

template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Rows of a cloud are counted in 32 bits on the device; offsets of clouds and batches take 64.
inline int small(int64_t count, const char* op, const char* what) {
  TORCH_CHECK_VALUE(count <= (1 << 30), op, ": ", what, "=", count, " exceeds ", 1 << 30, " per cloud; split the input");
  return int(count);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Memory whose size is given at the launch.
template <typename T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// The order of operations that every implementation of this package shares.
template <typename T>
__device__ inline T squared_distance(T dx, T dy, T dz) {
  return (dx * dx + dy * dy) + dz * dz;
}

// Bits of a non-negative float order like the float itself; NaN lies above infinity, and nothing reaches kNobody.
template <typename T> struct BitsOf;
template <> struct BitsOf<float> { using type = uint32_t; };
template <> struct BitsOf<double> { using type = uint64_t; };
template <typename T> using Bits = typename BitsOf<T>::type;
template <typename T> constexpr Bits<T> kNobody = ~Bits<T>(0);
template <typename T> constexpr Bits<T> kInfinity = sizeof(T) == 4 ? Bits<T>(0x7F800000u) : Bits<T>(0x7FF0000000000000ull);

__device__ inline uint32_t to_bits(float value) { return __float_as_uint(value); }
__device__ inline uint64_t to_bits(double value) { return uint64_t(__double_as_longlong(value)); }
__device__ inline float from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double from_bits(uint64_t bits) { return __longlong_as_double(int64_t(bits)); }

// A squared distance and an index as one integer: smaller keys are nearer, and of equally near points the one with the lower
// index. NaN counts as infinity.
template <typename T> struct KeyOf;
template <> struct KeyOf<float> { using type = uint64_t; };
template <> struct KeyOf<double> { using type = unsigned __int128; };
template <typename T> using Key = typename KeyOf<T>::type;
template <typename T> constexpr Key<T> kLastKey = ~Key<T>(0);

template <typename T>
__device__ inline Key<T> make_key(Bits<T> sqdist, uint32_t index) {
  return (Key<T>(sqdist < kInfinity<T> ? sqdist : kInfinity<T>) << 32) | index;
}

template <typename T> __device__ inline T key_sqdist(Key<T> key) { return from_bits(Bits<T>(key >> 32)); }
template <typename T> __device__ inline uint32_t key_index(Key<T> key) { return uint32_t(key); }

__device__ inline int lane_id() { return threadIdx.x % kWarp; }
__device__ inline unsigned lanes_below(int lane) { return (1u << lane) - 1; }

template <typename V>
__device__ inline V shuffle_xor(V value, int lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}
__device__ inline unsigned __int128 shuffle_xor(unsigned __int128 value, int lanes) {
  const uint64_t high = __shfl_xor_sync(kAllLanes, uint64_t(value >> 64), lanes);
  return ((unsigned __int128)(high) << 64) | __shfl_xor_sync(kAllLanes, uint64_t(value), lanes);
}

template <typename V>
__device__ inline V shuffle(V value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
__device__ inline unsigned __int128 shuffle(unsigned __int128 value, int lane) {
  const uint64_t high = __shfl_sync(kAllLanes, uint64_t(value >> 64), lane);
  return ((unsigned __int128)(high) << 64) | __shfl_sync(kAllLanes, uint64_t(value), lane);
}

template <typename V>
__device__ inline V warp_max(V value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const V other = shuffle_xor(value, step);
    value = other > value ? other : value;
  }
  return value;
}

template <typename V>
__device__ inline V warp_min(V value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const V other = shuffle_xor(value, step);
    value = other < value ? other : value;
  }
  return value;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// One instruction where there is one.
__device__ inline int32_t warp_max(int32_t value) { return __reduce_max_sync(kAllLanes, value); }
__device__ inline uint32_t warp_min(uint32_t value) { return __reduce_min_sync(kAllLanes, value); }
#endif

// The same sum in every lane; the order of additions is fixed.
template <typename T>
__device__ inline T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

}  // namespace m2ae
