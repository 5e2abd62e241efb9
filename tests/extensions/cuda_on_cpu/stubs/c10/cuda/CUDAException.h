// Stands in for PyTorch's header and for the part of the CUDA runtime that csrc/cuda/launch.cuh calls. The device is what the test makes
// it (`emulator_set`), so that the host code chooses every path.
#pragma once

#include <c10/util/Exception.h>

#include <map>
#include <utility>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidClusterSize = 912 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributeNonPortableClusterSizeAllowed = 13 };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
using cudaStream_t = void*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulator {

// What a test may set: the device, and the answers of calls that may fail.
struct Device {
  int major = 9, processors = 132, shared_limit = 227 * 1024;
  int largest_cluster = 16;                 // blocks; more make the occupancy 0
  cudaError_t occupancy = cudaSuccess;      // what asking for the occupancy of a cluster returns
  cudaError_t cluster_launch = cudaSuccess;  // what launching one returns
};
extern Device device;
extern cudaError_t last_error;  // as cudaGetLastError returns and clears it
extern std::map<std::pair<const void*, cudaFuncAttribute>, int> kernel_attributes;

inline cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

template <typename Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace emulator

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulator::Device& device = emulator::device;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? device.processors
           : attribute == cudaDevAttrComputeCapabilityMajor ? device.major
                                                            : device.shared_limit;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  const bool too_much = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > emulator::device.shared_limit;
  if (too_much) return emulator::answer(cudaErrorInvalidValue);
  emulator::kernel_attributes[{emulator::address(kernel), attribute}] = value;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* active, Kernel*, const cudaLaunchConfig_t* config) {
  *active = int(config->attrs[0].val.clusterDim.x) <= emulator::device.largest_cluster;
  return emulator::answer(emulator::device.occupancy);
}

template <typename... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Params... args) {
  if (emulator::device.cluster_launch != cudaSuccess) return emulator::answer(emulator::device.cluster_launch);
  const unsigned size = config->attrs[0].val.clusterDim.x;
  if (config->numAttrs != 1 || config->attrs[0].id != cudaLaunchAttributeClusterDimension || config->gridDim.x % size) {
    return emulator::answer(cudaErrorInvalidConfiguration);
  }
  if (size > 8 && !emulator::kernel_attributes[{emulator::address(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed}]) {
    return emulator::answer(cudaErrorInvalidClusterSize);
  }
  emulator::run(emulator::address(kernel), config->gridDim.x, int(config->blockDim.x), config->dynamicSmemBytes, int(size),
                [&] { kernel(args...); });
  return cudaSuccess;
}

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, "CUDA error in " #call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
