// Sorting networks over the registers of a warp: element e of 32 * G lies in register e / 32 of lane e % 32.
#pragma once

#include "common.cuh"

namespace m2ae {
namespace {

// Compares and exchanges elements `kHalf` apart, then kHalf / 2 and so on: turns bitonic runs of kSize elements into sorted ones,
// ascending where the run's number is even. Sizes are template parameters so that all stays in registers.
template <int G, int kSize, int kHalf = kSize / 2, typename V>
__device__ inline void bitonic_stage(V (&v)[G]) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if constexpr (kHalf >= kWarp) {
      constexpr int kStep = kHalf / kWarp;
      if (g & kStep) continue;
      const bool swap = (v[g + kStep] < v[g]) == ((g * kWarp & kSize) == 0);
      const V low = swap ? v[g + kStep] : v[g], high = swap ? v[g] : v[g + kStep];
      v[g] = low, v[g + kStep] = high;
    } else {
      const bool ascending = ((g * kWarp + lane_id()) & kSize) == 0, first = (lane_id() & kHalf) == 0;
      const V other = shuffle_xor(v[g], kHalf);
      v[g] = (other < v[g]) == (ascending == first) ? other : v[g];
    }
  }
  if constexpr (kHalf > 1) bitonic_stage<G, kSize, kHalf / 2>(v);
}

template <int G, int kSize = 2, typename V>
__device__ inline void bitonic_sort(V (&v)[G]) {
  bitonic_stage<G, kSize>(v);
  if constexpr (kSize < kWarp * G) bitonic_sort<G, kSize * 2>(v);
}

// The 32 * G smallest of a sorted list and 32 new keys in any order, sorted again.
template <int G, typename V>
__device__ inline void merge_into(V (&list)[G], V fresh) {
  V batch[1] = {fresh};
  bitonic_sort<1>(batch);
  // The 32 that drop out lie among the last register of the list and the new keys.
  const V turned = shuffle(batch[0], kWarp - 1 - lane_id());
  list[G - 1] = turned < list[G - 1] ? turned : list[G - 1];
  if constexpr (G > 1) {
    V last[1] = {list[G - 1]};
    bitonic_stage<1, kWarp>(last);
    list[G - 1] = shuffle(last[0], kWarp - 1 - lane_id());
  }
  bitonic_stage<G, kWarp * G>(list);
}

// Element `at`, in every lane.
template <int G, typename V>
__device__ inline V element(const V (&v)[G], int at) {
  // Choosing comes after the shuffles: choosing the register would make the compiler put the array into memory.
  V chosen = shuffle(v[0], at % kWarp);
#pragma unroll
  for (int g = 1; g < G; ++g) {
    const V other = shuffle(v[g], at % kWarp);
    chosen = at / kWarp == g ? other : chosen;
  }
  return chosen;
}

}  // namespace
}  // namespace m2ae
