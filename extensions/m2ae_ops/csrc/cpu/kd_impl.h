// Lays out the points of a cloud as the leaves of a balanced k-d tree, so that every run of kLeaf points is compact.
//
// The tree is a matter of speed only: it is built on coordinates rounded to 10 bits, packed into one integer a point.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int kFieldBits = 8;
constexpr int32_t kField = (1 << kFieldBits) - 1;

// Items to be ordered: coordinates packed into the three lower bytes of a key and who they belong to, and room for as many
// again. All arrays have room for a vector more than there are items.
struct KdItems {
  int32_t *key, *id, *spare_key, *spare_id;
};

typedef uint8_t Bytes __attribute__((vector_size(M2AE_BYTES)));

inline Bytes load_bytes(const int32_t* from) {
  Bytes v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// Smallest (or largest) of every byte of the integers in `v`.
template <bool low>
inline uint32_t fold(Bytes v) {
#if defined(__AVX512BW__)
  const auto pick = [](__m128i a, __m128i b) { return low ? _mm_min_epu8(a, b) : _mm_max_epu8(a, b); };
  const __m256i upper = _mm512_extracti64x4_epi64((__m512i)v, 1), lower = _mm512_castsi512_si256((__m512i)v);
  const __m256i half = low ? _mm256_min_epu8(upper, lower) : _mm256_max_epu8(upper, lower);
  __m128i m = pick(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  m = pick(m, _mm_shuffle_epi32(m, 0x4E));
  return _mm_cvtsi128_si32(pick(m, _mm_shuffle_epi32(m, 0xB1)));
#else
  uint8_t out[4] = {v[0], v[1], v[2], v[3]};
  for (int i = 4; i < M2AE_BYTES; ++i) out[i % 4] = (v[i] < out[i % 4]) == low ? v[i] : out[i % 4];
  return out[0] | out[1] << 8 | out[2] << 16;
#endif
}

// The axis (as the shift of its field) along which the items reach farthest, with its smallest and largest value.
inline int widest_axis(const int32_t* key, int64_t count, int32_t& smallest, int32_t& largest) {
  constexpr int lanes = M2AE_BYTES / sizeof(int32_t);
  if (count < lanes) {  // never asked where speed matters
    smallest = 0, largest = kField;
    return 0;
  }
  Bytes low = load_bytes(key), high = low;
  for (int64_t i = lanes; i < count; i += lanes) {
    const Bytes v = load_bytes(key + (i + lanes <= count ? i : count - lanes));
    low = smaller(v, low), high = larger(v, high);
  }
  const uint32_t lowest = fold<true>(low), highest = fold<false>(high);
  int axis = 0;
  int32_t reach = -1;
  for (int shift = 0; shift < 3 * kFieldBits; shift += kFieldBits) {
    const int32_t extent = int32_t(highest >> shift & kField) - int32_t(lowest >> shift & kField);
    axis = extent > reach ? shift : axis;
    reach = extent > reach ? extent : reach;
  }
  smallest = lowest >> axis & kField, largest = highest >> axis & kField;
  return axis;
}

constexpr int kCuts = 4;

// How many items lie below each of some cuts.
inline void count_below(const int32_t* key, int64_t count, int32_t mask, const int32_t* cuts, int32_t* below) {
  const int32_t c0 = cuts[0], c1 = cuts[1], c2 = cuts[2], c3 = cuts[3];
  int32_t b0 = 0, b1 = 0, b2 = 0, b3 = 0, i = 0;
#if defined(__AVX512F__)
  const __m512i v0 = _mm512_set1_epi32(c0), v1 = _mm512_set1_epi32(c1), v2 = _mm512_set1_epi32(c2), v3 = _mm512_set1_epi32(c3);
  for (; i + 16 <= count; i += 16) {
    const __m512i value = _mm512_and_si512(_mm512_loadu_si512(key + i), _mm512_set1_epi32(mask));
    b0 += __builtin_popcount(_mm512_cmplt_epi32_mask(value, v0)), b1 += __builtin_popcount(_mm512_cmplt_epi32_mask(value, v1));
    b2 += __builtin_popcount(_mm512_cmplt_epi32_mask(value, v2)), b3 += __builtin_popcount(_mm512_cmplt_epi32_mask(value, v3));
  }
#endif
  for (; i < count; ++i) {
    const int32_t value = key[i] & mask;
    b0 += value < c0, b1 += value < c1, b2 += value < c2, b3 += value < c3;
  }
  below[0] = b0, below[1] = b1, below[2] = b2, below[3] = b3;
}

// Moves the items below `pivot`, and `quota` of those equal to it, to the front; the others follow.
inline void partition(const KdItems& items, int64_t count, int32_t mask, int32_t pivot, int64_t quota) {
  int64_t left = 0, right = 0, i = 0;
#if defined(__AVX512F__)
  const __m512i field = _mm512_set1_epi32(mask), middle = _mm512_set1_epi32(pivot);
  for (; i < count; i += 16) {
    const __mmask16 real = count - i >= 16 ? 0xFFFF : (1 << (count - i)) - 1;
    const __m512i key = _mm512_loadu_si512(items.key + i), id = _mm512_loadu_si512(items.id + i);
    const __m512i value = _mm512_and_si512(key, field);
    uint32_t front = _mm512_mask_cmplt_epi32_mask(real, value, middle);
    uint32_t same = _mm512_mask_cmpeq_epi32_mask(real, value, middle);
    const int64_t equals = __builtin_popcount(same);
    if (__builtin_expect(equals > quota, 0)) {
      for (; quota > 0; --quota, same &= same - 1) front |= same & -same;
    } else {
      front |= same, quota -= equals;
    }
    const uint32_t back = real & ~front;
    // A whole vector is stored: what lies behind the front items has been loaded already.
    _mm512_storeu_si512(items.key + left, _mm512_maskz_compress_epi32(front, key));
    _mm512_storeu_si512(items.id + left, _mm512_maskz_compress_epi32(front, id));
    _mm512_storeu_si512(items.spare_key + right, _mm512_maskz_compress_epi32(back, key));
    _mm512_storeu_si512(items.spare_id + right, _mm512_maskz_compress_epi32(back, id));
    left += __builtin_popcount(front), right += __builtin_popcount(back);
  }
#else
  for (; i < count; ++i) {
    const int32_t key = items.key[i], id = items.id[i], value = key & mask;
    const bool same = value == pivot && quota > 0, front = value < pivot || same;
    quota -= same;
    items.key[left] = key, items.id[left] = id;
    items.spare_key[right] = key, items.spare_id[right] = id;
    left += front, right += !front;
  }
#endif
  __builtin_memcpy(items.key + left, items.spare_key, right * sizeof(int32_t));
  __builtin_memcpy(items.id + left, items.spare_id, right * sizeof(int32_t));
}

// Orders the items such that the first `half` are not above the others along the widest axis.
inline void halve(const KdItems& items, int64_t count, int64_t half) {
  int32_t low, high;
  const int shift = widest_axis(items.key, count, low, high);
  const int32_t mask = kField << shift;
  // Largest value with at most `half` items below it, found by cutting around where it should be if the rest were even.
  int32_t from = low, to = high + 1, below_from = 0, below_to = count;
  while (to - from > 1 && below_from < half) {
    const int32_t width = to - from, step = width >= 16 ? width / 8 : 1;
    int32_t guess = from + int32_t(width * (half - below_from) / (below_to - below_from)) - step * (kCuts / 2 - 1);
    guess = guess <= from ? from + 1 : guess;
    if (step == 1 && guess + kCuts > to) guess = to - kCuts > from ? to - kCuts : from + 1;
    int32_t cuts[kCuts], below[kCuts];
    for (int c = 0; c < kCuts; ++c) cuts[c] = (guess + c * step) << shift;
    count_below(items.key, count, mask, cuts, below);
    for (int c = 0; c < kCuts; ++c) {
      const int32_t at = guess + c * step;
      const bool under = below[c] <= half, closer = under ? at > from && at < to : at < to && at > from;
      if (!closer) continue;
      if (under) from = at, below_from = below[c];
      else to = at, below_to = below[c];
    }
  }
  partition(items, count, mask, from << shift, half - below_from);
}

void kd_order(const KdItems& items, int64_t count) {
  const int64_t leaves = (count + kLeaf - 1) / kLeaf;
  if (leaves <= 1) return;
  // Whole groups go to either side as long as there are several.
  const int64_t unit = leaves > kGroup ? kGroup : 1, units = (leaves + unit - 1) / unit;
  const int64_t half = (units + 1) / 2 * unit * kLeaf;
  halve(items, count, half);
  kd_order(items, half);
  kd_order({items.key + half, items.id + half, items.spare_key, items.spare_id}, count - half);
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
