// Device code as plain C++: what the CUDA sources of this package use of the language, for a runtime in which every CUDA thread is
// a fiber of one CPU thread. rewrite.py replaces what no macro can; runtime.cpp runs the fibers.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace emulator {

struct Dim {
  unsigned x, y, z;
};

enum Kind { kSyncWarp, kShuffle, kShuffleXor, kBallot, kAny, kMatchAny, kReduceMax, kReduceMin, kSyncThreads, kSyncThreadsOr, kSyncCluster };

// Meets the other 31 lanes; returns what each of them brought (valid until the lane's next meeting). `who` gets the lanes that took
// part. Anomalies raise: lanes that have exited, lanes that meet for different operations or, where sites count, at different places.
const uint64_t* meet_warp(Kind kind, const void* site, unsigned mask, uint64_t value, unsigned* who = nullptr);

// Meets all threads of the block; returns whether any of them brought true.
bool meet_block(Kind kind, const void* site, bool value);

// Meets all threads of all blocks of the cluster.
void meet_cluster(const void* site);

unsigned cluster_rank();
unsigned cluster_size();
void* map_to_block(void* address, unsigned rank);

// Memory of the running block. A declared object is known by the address of a tag, one for each declaration and instantiation.
void* declared_shared(const void* tag, size_t bytes, size_t alignment);
unsigned char* dynamic_shared();

// Runs a kernel to its end: clusters one after the other, blocks of a cluster and their threads in turns.
void run(const void* kernel, int64_t blocks, int threads, size_t shared_bytes, int blocks_of_cluster, const std::function<void()>& body);

template <typename Object>
Object& shared() {
  static const char tag = 0;
  return *static_cast<Object*>(declared_shared(&tag, sizeof(Object), alignof(Object)));
}

inline void kernel_assert(bool holds, const char* condition) {
  if (!holds) throw std::out_of_range(std::string("device-side assert triggered: ") + condition);
}

template <typename V>
uint64_t as_word(V value) {
  static_assert(sizeof(V) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(V));
  return word;
}

template <typename V>
V from_word(uint64_t word) {
  V value;
  std::memcpy(&value, &word, sizeof(V));
  return value;
}

}  // namespace emulator

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// Of the running fiber; the runtime changes them at each switch.
extern emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

// A meeting must be a call of its own, so that its return address names the place.
#define EMULATOR_CALL __attribute__((noinline))
#define EMULATOR_SITE __builtin_return_address(0)

struct __align__(16) int4 {
  int x, y, z, w;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

EMULATOR_CALL inline void __syncthreads() { ::emulator::meet_block(::emulator::kSyncThreads, EMULATOR_SITE, false); }
EMULATOR_CALL inline int __syncthreads_or(int value) {
  return ::emulator::meet_block(::emulator::kSyncThreadsOr, EMULATOR_SITE, value != 0);
}
EMULATOR_CALL inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  ::emulator::meet_warp(::emulator::kSyncWarp, EMULATOR_SITE, mask, 0);
}

template <typename V>
EMULATOR_CALL V __shfl_sync(unsigned mask, V value, int lane) {
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kShuffle, EMULATOR_SITE, mask, ::emulator::as_word(value));
  return ::emulator::from_word<V>(brought[lane & 31]);
}

template <typename V>
EMULATOR_CALL V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kShuffleXor, EMULATOR_SITE, mask, ::emulator::as_word(value));
  return ::emulator::from_word<V>(brought[(threadIdx.x ^ unsigned(lanes)) & 31]);
}

EMULATOR_CALL inline unsigned __ballot_sync(unsigned mask, int value) {
  unsigned who = 0, votes = 0;
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kBallot, EMULATOR_SITE, mask, value != 0, &who);
  for (unsigned lane = 0; lane < 32; ++lane) votes |= unsigned((who >> lane & 1) && brought[lane]) << lane;
  return votes;
}

EMULATOR_CALL inline int __any_sync(unsigned mask, int value) {
  unsigned who = 0;
  bool any = false;
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kAny, EMULATOR_SITE, mask, value != 0, &who);
  for (unsigned lane = 0; lane < 32; ++lane) any |= (who >> lane & 1) && brought[lane];
  return any;
}

template <typename V>
EMULATOR_CALL unsigned __match_any_sync(unsigned mask, V value) {
  unsigned who = 0, alike = 0;
  const uint64_t own = ::emulator::as_word(value);
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kMatchAny, EMULATOR_SITE, mask, own, &who);
  for (unsigned lane = 0; lane < 32; ++lane) alike |= unsigned((who >> lane & 1) && brought[lane] == own) << lane;
  return alike;
}

EMULATOR_CALL inline int __reduce_max_sync(unsigned mask, int value) {
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kReduceMax, EMULATOR_SITE, mask, ::emulator::as_word(value));
  for (unsigned lane = 0; lane < 32; ++lane) {
    const int other = ::emulator::from_word<int>(brought[lane]);
    value = other > value ? other : value;
  }
  return value;
}

EMULATOR_CALL inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  const uint64_t* brought = ::emulator::meet_warp(::emulator::kReduceMin, EMULATOR_SITE, mask, value);
  for (unsigned lane = 0; lane < 32; ++lane) value = unsigned(brought[lane]) < value ? unsigned(brought[lane]) : value;
  return value;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(int(value)); }
inline unsigned __brev(unsigned value) {
  unsigned turned = 0;
  for (int bit = 0; bit < 32; ++bit) turned |= (value >> bit & 1) << (31 - bit);
  return turned;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)(a) * b >> 64); }
inline uint32_t __float_as_uint(float value) { return ::emulator::from_word<uint32_t>(::emulator::as_word(value)); }
inline float __uint_as_float(uint32_t bits) { return ::emulator::from_word<float>(bits); }
inline int64_t __double_as_longlong(double value) { return ::emulator::from_word<int64_t>(::emulator::as_word(value)); }
inline double __longlong_as_double(int64_t bits) { return ::emulator::from_word<double>(uint64_t(bits)); }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return b > a ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return b > a ? b : a; }

// CUDA's atomics are relaxed.
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
template <typename V>
V atomicMax(V* at, V value) {
  V before = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (before < value && !__atomic_compare_exchange_n(at, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
