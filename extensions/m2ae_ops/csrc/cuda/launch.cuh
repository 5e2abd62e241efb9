// All that this package asks of the CUDA runtime besides PyTorch's devices and streams: attributes of devices and kernels, launches,
// and clusters of blocks. Every call's error is handled here. tests/extensions/cuda_on_cpu replaces what this file calls.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <climits>
#include <cstdint>

namespace m2ae {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Dynamic shared memory up to which a block, with what its kernel declares, stays within the 48 KiB that need no asking.
constexpr size_t kUnaskedShared = 32 * 1024;

// Starts the kernel on the current stream of the current device. The grid is one-dimensional, so that its limit is 2^31 - 1.
//
// What runs asynchronously may fail later; a launch that is refused (too much shared memory, no code for the device) raises here.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int threads, size_t shared_bytes, Args... args) {
  if (blocks == 0) return;  // CUDA refuses an empty grid
  TORCH_CHECK_VALUE(blocks <= INT_MAX, "m2ae: ", blocks, " blocks exceed the limit of a launch; split the batch");
  if (shared_bytes > kUnaskedShared) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  }
  kernel<<<unsigned(blocks), threads, shared_bytes, c10::cuda::getCurrentCUDAStream()>>>(Params(args)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

constexpr int kPortableCluster = 8;  // blocks of a cluster that every device with clusters runs; more must be asked for

// Returns whether a call succeeded, and clears its error if not, so that the next check of PyTorch does not report it. An error that an
// earlier kernel has left cannot be cleared and comes up again at the next call.
inline bool succeeded(cudaError_t error) {
  if (error == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

// Starts `clusters` clusters of `size` blocks each on the current stream, or returns false: the device has no clusters (compute
// capability below 9), none of this size and shared memory fits (small devices, slices of one), or the driver refuses to say so.
// In the last case CUDA documents an error (cudaErrorInvalidClusterSize, cudaErrorInvalidValue) where one would expect a count of 0.
template <typename... Params, typename... Args>
bool launch_clusters(void (*kernel)(Params...), int64_t clusters, int size, int threads, size_t shared_bytes, Args... args) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 9 || clusters * size > INT_MAX) return false;
  if (clusters == 0) return true;
  if (!succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)))) return false;
  if (size > kPortableCluster && !succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))) return false;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(size), attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(clusters * size));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = c10::cuda::getCurrentCUDAStream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  int active = 0;  // clusters that could run at the same time
  if (!succeeded(cudaOccupancyMaxActiveClusters(&active, kernel, &config)) || active == 0) return false;
  return succeeded(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

}  // namespace m2ae
