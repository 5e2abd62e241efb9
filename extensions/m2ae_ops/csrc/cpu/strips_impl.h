// Numbers of patches in registers: what is stored as float32, float64 or bfloat16, several channels at a time; see patches.h.
#pragma once

#include "patches.h"

namespace m2ae::M2AE_ISA {
namespace {

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(Bf16 v) {
  const uint32_t pattern = uint32_t(v.bits) << 16;
  float out;
  __builtin_memcpy(&out, &pattern, sizeof(out));
  return out;
}

inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, Bf16& out) {  // to nearest, ties to even
  uint32_t pattern;
  __builtin_memcpy(&pattern, &v, sizeof(pattern));
  const uint32_t rounded = (pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16;
  out.bits = uint16_t((pattern & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// Eight channels at a time, for the sums in double precision, which compilers do not vectorise by themselves.
constexpr int64_t kEight = 8;
typedef float F8 __attribute__((vector_size(32)));
typedef double D8 __attribute__((vector_size(64)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef uint16_t H8 __attribute__((vector_size(16)));

template <typename V, typename T>
inline V copy8(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline F8 load8(const float* from) { return copy8<F8>(from); }
inline D8 load8(const double* from) { return copy8<D8>(from); }
inline F8 load8(const Bf16* from) { return (F8)(__builtin_convertvector(copy8<H8>(from), U8) << 16); }

// They return what was stored, so that nobody has to wait for memory to see how it was rounded.
inline F8 store8(F8 v, float* to) { return __builtin_memcpy(to, &v, sizeof(v)), v; }
inline D8 store8(D8 v, double* to) { return __builtin_memcpy(to, &v, sizeof(v)), v; }
inline F8 store8(F8 v, Bf16* to) {
  const U8 pattern = (U8)v, nan = (U8)((pattern & 0x7FFFFFFFu) > 0x7F800000u);
  const U8 rounded = (nan & 0x7FC0u) | (~nan & ((pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16));
  const H8 out = __builtin_convertvector(rounded, H8);
  __builtin_memcpy(to, &out, sizeof(out));
  return (F8)(rounded << 16);
}

inline D8 exact(F8 v) { return __builtin_convertvector(v, D8); }
inline D8 exact(D8 v) { return v; }

// Lane-wise: `value` where `open` > 0, else 0.
template <typename V>
inline V where_positive(V open, V value) {
  const auto mask = open > 0;
  return (V)((decltype(mask))value & mask);
}

inline void add8(double* to, D8 v) {
  const D8 sum = copy8<D8>(to) + v;
  __builtin_memcpy(to, &sum, sizeof(sum));
}

template <typename R>
inline R positive(R v) {  // NaN stays NaN
  return v <= 0 ? R(0) : v;
}

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

// Channels of a row that are worked on together, in registers; numbers beyond the last channel are zero.
template <typename R>
struct Strip {
  typedef R Part __attribute__((vector_size(64)));
  static constexpr int64_t kPart = 64 / sizeof(R), kParts = kPeakStrip / kPart;
  Part part[kParts];
};

typedef float F16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));

inline void load_part(const float* from, F16& to) { to = copy8<F16>(from); }
inline void load_part(const double* from, D8& to) { to = copy8<D8>(from); }
inline void load_part(const Bf16* from, F16& to) { to = (F16)(__builtin_convertvector(copy8<H16>(from), U16) << 16); }

inline void store_part(const D8& v, double* to) { __builtin_memcpy(to, &v, sizeof(v)); }
inline void store_part(const F16& v, float* to) { __builtin_memcpy(to, &v, sizeof(v)); }
inline void store_part(const F16& v, Bf16* to) {
  const U16 pattern = (U16)v, nan = (U16)((pattern & 0x7FFFFFFFu) > 0x7F800000u);
  const U16 rounded = (pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16;
  const H16 out = __builtin_convertvector((nan & 0x7FC0u) | (~nan & rounded), H16);
  __builtin_memcpy(to, &out, sizeof(out));
}

template <typename S>
inline void load_strip(const S* from, int64_t width, Strip<Real<S>>& to) {
  using T = Strip<Real<S>>;
  S padded[kPeakStrip];
  if (width < kPeakStrip) {
    for (int64_t i = 0; i < kPeakStrip; ++i) padded[i] = i < width ? from[i] : S{};
    from = padded;
  }
  for (int64_t p = 0; p < T::kParts; ++p) load_part(from + p * T::kPart, to.part[p]);
}

template <typename S>
inline void store_strip(const Strip<Real<S>>& from, int64_t width, S* to) {
  using T = Strip<Real<S>>;
  if (width == kPeakStrip) {
    for (int64_t p = 0; p < T::kParts; ++p) store_part(from.part[p], to + p * T::kPart);
    return;
  }
  S padded[kPeakStrip];
  for (int64_t p = 0; p < T::kParts; ++p) store_part(from.part[p], padded + p * T::kPart);
  for (int64_t i = 0; i < width; ++i) to[i] = padded[i];
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
