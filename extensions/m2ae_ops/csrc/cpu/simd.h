// Vectors of one register each, in the compiler's own vector extension (GCC and Clang), and the few steps it lacks.
//
// Included by kernels_impl.h only, which sets M2AE_ISA (a namespace) and M2AE_BYTES (register width).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace m2ae::M2AE_ISA {
namespace {

template <typename T> struct IntOf;
template <> struct IntOf<float> { using type = int32_t; };
template <> struct IntOf<double> { using type = int64_t; };

template <typename T>
struct Lanes {
  using Int = typename IntOf<T>::type;
  static constexpr int W = M2AE_BYTES / sizeof(T);
  typedef T Vec __attribute__((vector_size(M2AE_BYTES)));
  typedef Int IVec __attribute__((vector_size(M2AE_BYTES)));
};

template <typename T> using Vec = typename Lanes<T>::Vec;
template <typename T> using IVec = typename Lanes<T>::IVec;
template <typename T> using Int = typename Lanes<T>::Int;

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

template <typename T>
inline IVec<T> load_int(const Int<T>* from) {
  IVec<T> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store_int(Int<T>* to, IVec<T> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

template <typename T>
inline Vec<T> all(T value) {
  return value - Vec<T>{};
}

template <typename T>
inline IVec<T> all_int(Int<T> value) {
  return value - IVec<T>{};
}

// The order of operations every implementation of this package shares; the build forbids contraction.
template <typename V>
inline V squared_distance(V dx, V dy, V dz) {
  return (dx * dx + dy * dy) + dz * dz;
}

// Results of comparisons: a mask register with AVX-512, else a vector of 0 and -1. They combine with &, | and ~.
#if defined(__AVX512DQ__)
template <typename T> struct MaskOf;
template <> struct MaskOf<float> { using type = __mmask16; };
template <> struct MaskOf<double> { using type = __mmask8; };
template <typename T> using Mask = typename MaskOf<T>::type;

inline Mask<float> lt(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
inline Mask<float> le(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
inline Mask<float> eq(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
inline Mask<double> lt(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ); }
inline Mask<double> le(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ); }
inline Mask<double> eq(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ); }
inline Mask<float> lt(IVec<float> a, IVec<float> b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
inline Mask<double> lt(IVec<double> a, IVec<double> b) { return _mm512_cmplt_epi64_mask((__m512i)a, (__m512i)b); }

inline Vec<float> select(Mask<float> m, Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a);
}
inline Vec<double> select(Mask<double> m, Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a);
}
inline IVec<float> select(Mask<float> m, IVec<float> a, IVec<float> b) {
  return (IVec<float>)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
inline IVec<double> select(Mask<double> m, IVec<double> a, IVec<double> b) {
  return (IVec<double>)_mm512_mask_blend_epi64(m, (__m512i)b, (__m512i)a);
}

// One bit per lane, lane 0 lowest.
inline uint32_t bits(Mask<float> m) { return m; }
inline uint32_t bits(Mask<double> m) { return m; }
#else
template <typename T> using Mask = IVec<T>;

inline Mask<float> lt(Vec<float> a, Vec<float> b) { return a < b; }
inline Mask<float> le(Vec<float> a, Vec<float> b) { return a <= b; }
inline Mask<float> eq(Vec<float> a, Vec<float> b) { return a == b; }
inline Mask<double> lt(Vec<double> a, Vec<double> b) { return a < b; }
inline Mask<double> le(Vec<double> a, Vec<double> b) { return a <= b; }
inline Mask<double> eq(Vec<double> a, Vec<double> b) { return a == b; }
inline Mask<float> lt(IVec<float> a, IVec<float> b) { return a < b; }
inline Mask<double> lt(IVec<double> a, IVec<double> b) { return a < b; }

template <typename M, typename V>
inline V select(M m, V a, V b) {
  return m ? a : b;
}

// One bit per lane, lane 0 lowest.
inline uint32_t bits(Mask<float> m) {
#if defined(__AVX2__)
  return _mm256_movemask_ps((__m256)m);
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)m);
#else
  uint32_t out = 0;
  for (int i = 0; i < Lanes<float>::W; ++i) out |= uint32_t(m[i] & 1) << i;
  return out;
#endif
}

inline uint32_t bits(Mask<double> m) {
#if defined(__AVX2__)
  return _mm256_movemask_pd((__m256d)m);
#elif defined(__SSE2__)
  return _mm_movemask_pd((__m128d)m);
#else
  uint32_t out = 0;
  for (int i = 0; i < Lanes<double>::W; ++i) out |= uint32_t(m[i] & 1) << i;
  return out;
#endif
}
#endif

// Writes `base` + lane for every lane of the mask to `out`, which has room for all lanes, and returns how many they are.
template <typename T>
inline int64_t append_lanes(Mask<T> m, int32_t base, int32_t* out) {
  uint32_t todo = bits(m);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {  // no branches, whose outcome would be hard to predict
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(todo, _mm512_add_epi32(lanes, _mm512_set1_epi32(base))));
    return __builtin_popcount(todo);
  }
#endif
  int64_t count = 0;
  for (; todo; todo &= todo - 1) out[count++] = base + __builtin_ctz(todo);
  return count;
}

// Writes the values in the lanes of the mask to `out`, which has room for all lanes, and returns how many they are.
template <typename T, typename V, typename E>
inline int64_t append_values(Mask<T> m, V values, E* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(m, (__m512i)values));
  } else {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(m, (__m512i)values));
  }
  return __builtin_popcount(bits(m));
#else
  int64_t count = 0;
  for (uint32_t todo = bits(m); todo; todo &= todo - 1) out[count++] = values[__builtin_ctz(todo)];
  return count;
#endif
}

// Lane-wise minimum and maximum; where one is NaN, `b`.
template <typename V>
inline V smaller(V a, V b) {
  return a < b ? a : b;
}

template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// The lanes of a vector in another order, or of two vectors one after the other; the order is known when this is compiled.
#if defined(__clang__)
template <typename V, typename I>
inline V shuffled(V v, I order) {
  V out;
#pragma clang loop unroll(full)
  for (unsigned lane = 0; lane < sizeof(V) / sizeof(v[0]); ++lane) out[lane] = v[order[lane]];
  return out;
}
template <typename V, typename I>
inline V shuffled(V first, V second, I order) {
  constexpr int count = sizeof(V) / sizeof(first[0]);
  V out;
#pragma clang loop unroll(full)
  for (int lane = 0; lane < count; ++lane) out[lane] = order[lane] < count ? first[order[lane]] : second[order[lane] - count];
  return out;
}
#else
template <typename V, typename I>
inline V shuffled(V v, I order) {
  return __builtin_shuffle(v, order);
}
template <typename V, typename I>
inline V shuffled(V first, V second, I order) {
  return __builtin_shuffle(first, second, order);
}
#endif

// Adds to every lane the one `Step` below it, then the one twice as far below, and so on: sums up to each lane.
template <int Step>
inline IVec<float> sums_up_to(IVec<float> v) {
  if constexpr (Step < Lanes<float>::W) {
    IVec<float> from;
#pragma GCC unroll 16
    for (int lane = 0; lane < Lanes<float>::W; ++lane) from[lane] = lane < Step ? Lanes<float>::W : lane - Step;
    return sums_up_to<2 * Step>(v + shuffled(v, IVec<float>{}, from));
  }
  return v;
}

// Turns `count` numbers, a multiple of kBucket, into the sums of those before each.
inline void sum_before(uint32_t* values, int64_t count) {
  constexpr int W = Lanes<float>::W;
  IVec<float> before{};
  for (int64_t i = 0; i < count; i += W) {
    IVec<float> here;
    __builtin_memcpy(&here, values + i, sizeof(here));
    const IVec<float> sum = sums_up_to<1>(here), out = before + sum - here;
    __builtin_memcpy(values + i, &out, sizeof(out));
    before += all_int<float>(sum[W - 1]);
  }
}

// Square roots.
inline Vec<float> root_of(Vec<float> v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < Lanes<float>::W; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

inline Vec<double> root_of(Vec<double> v) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_sqrt_pd((__m128d)v);
#else
  for (int i = 0; i < Lanes<double>::W; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// What each half of a word of `a` has more than that of `b`, or 0; halves are taken as unsigned.
inline IVec<float> excess_halves(IVec<float> a, IVec<float> b) {
#if defined(__AVX512BW__)
  return (IVec<float>)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (IVec<float>)_mm256_subs_epu16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (IVec<float>)_mm_subs_epu16((__m128i)a, (__m128i)b);
#else
  typedef uint16_t Halves __attribute__((vector_size(M2AE_BYTES)));
  const Halves x = (Halves)a, y = (Halves)b;
  return (IVec<float>)((x - y) & (Halves)(x > y));
#endif
}

// The sum of the squares of both halves of each word; halves are taken as signed.
inline IVec<float> square_halves(IVec<float> v) {
#if defined(__AVX512BW__)
  return (IVec<float>)_mm512_madd_epi16((__m512i)v, (__m512i)v);
#elif defined(__AVX2__)
  return (IVec<float>)_mm256_madd_epi16((__m256i)v, (__m256i)v);
#elif defined(__SSE2__)
  return (IVec<float>)_mm_madd_epi16((__m128i)v, (__m128i)v);
#else
  const IVec<float> lower = (v << 16) >> 16, upper = v >> 16;
  return lower * lower + upper * upper;
#endif
}

// A squared distance and an index as one integer: bits of non-negative floats order like the floats themselves, so that
// smaller keys are nearer, and of equally near points the one with the lower index.
template <typename T> struct KeyOf;
template <> struct KeyOf<float> { using type = int64_t; };
template <> struct KeyOf<double> { using type = __int128; };
template <typename T> using Key = typename KeyOf<T>::type;

template <typename T>
inline Key<T> make_key(T sqdist, int64_t index) {
  Int<T> pattern;
  __builtin_memcpy(&pattern, &sqdist, sizeof(pattern));
  return (Key<T>(pattern) << 32) | index;
}

template <typename T>
inline void split_key(Key<T> key, T& sqdist, int64_t& index) {
  const Int<T> pattern = Int<T>(key >> 32);
  __builtin_memcpy(&sqdist, &pattern, sizeof(pattern));
  index = int64_t(key & 0xFFFFFFFF);
}

// Largest lane.
inline float largest(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 m = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
#else
  float out = v[0];
  for (int i = 1; i < Lanes<float>::W; ++i) out = v[i] > out ? v[i] : out;
  return out;
#endif
}

inline double largest(Vec<double> v) {
  double out = v[0];
  for (int i = 1; i < Lanes<double>::W; ++i) out = v[i] > out ? v[i] : out;
  return out;
}

// Smallest lane.
inline float smallest(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps((__m512)v);
#else
  return -largest(-v);
#endif
}

inline double smallest(Vec<double> v) { return -largest(-v); }

}  // namespace
}  // namespace m2ae::M2AE_ISA
