// Tiles of rows in registers, for attention: products, weighted sums, transposition, powers of two.
//
// A tile (width, lanes) holds rows (lanes, width) the other way round, one or two registers of rows wide. Here, unlike in distances,
// products may be fused with sums.
#pragma once

#include "simd.h"
#include "strips_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

// Sums that are kept in registers at a time.
#if defined(__AVX512F__)
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif

#if defined(__AVX512F__)
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
inline Vec<float> most_of(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec<double> most_of(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b); }
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
template <typename V>
inline V most_of(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
inline V fused(V a, V b, V c) {
  return a * b + c;
}
#endif

// 2^x for x <= 0, at most 1 ulp off; zero where that would be no normal number. 2^(whole part) goes into the exponent of a polynomial
// in the rest, which is -0.5 to 0.5: the series for double, the best of its degree for float.
struct Exp2Float {
  static constexpr int kDegree = 6, kMantissa = 23;
  static constexpr float kRound = 12582912.0f, kLeast = -127.0f;
  static constexpr float kTerms[kDegree + 1] = {1.0f,           6.931472057e-1f, 2.402264689e-1f, 5.550328777e-2f,
                                                9.618488957e-3f, 1.339993122e-3f, 1.534581202e-4f};
};
struct Exp2Double {
  static constexpr int kDegree = 13, kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0, kLeast = -1023.0;
  static constexpr double kTerms[kDegree + 1] = {
      1.0, 0.6931471805599453, 0.2402265069591007, 0.055504108664821576, 0.009618129107628477, 0.0013333558146428441,
      0.00015403530393381606, 1.5252733804059838e-05, 1.3215486790144305e-06, 1.0178086009239696e-07, 7.054911620801121e-09,
      4.44553827187081e-10, 2.5678435993488196e-11, 1.3691488853904124e-12};
};
template <typename R> struct Exp2Of { using type = Exp2Float; };
template <> struct Exp2Of<double> { using type = Exp2Double; };

template <typename R>
inline Vec<R> exp2_series(Vec<R> rest) {
  using E = typename Exp2Of<R>::type;
  Vec<R> sum = all<R>(E::kTerms[E::kDegree]);
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 0; --i) sum = fused(sum, rest, all<R>(E::kTerms[i]));
  return sum;
}

#if defined(__AVX512F__)
inline Vec<float> exp2_below(Vec<float> x) {
  const __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
  return (Vec<float>)_mm512_scalef_ps((__m512)exp2_series<float>(x - (Vec<float>)whole), whole);
}
inline Vec<double> exp2_below(Vec<double> x) {
  const __m512d whole = _mm512_roundscale_pd((__m512d)x, 0);
  return (Vec<double>)_mm512_scalef_pd((__m512d)exp2_series<double>(x - (Vec<double>)whole), whole);
}
inline Vec<float> most_of(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec<double> most_of(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b); }
#else
template <typename R, typename V>
inline V exp2_with(V x) {
  using E = typename Exp2Of<R>::type;
  const V bounded = most_of(all<R>(E::kLeast), x);  // NaN stays
  const V shifted = bounded + E::kRound, rest = bounded - (shifted - E::kRound);
  return (V)((IVec<R>)exp2_series<R>(rest) + ((IVec<R>)shifted << E::kMantissa));
}
inline Vec<float> exp2_below(Vec<float> x) { return exp2_with<float>(x); }
inline Vec<double> exp2_below(Vec<double> x) { return exp2_with<double>(x); }
#endif

// Runs f(number, first) over first..last in groups of N, N / 2 ... 1.
template <int N>
struct Number {
  static constexpr int value = N;
};

template <int N, typename F>
inline void in_groups(int64_t first, int64_t last, F&& f) {
  for (; first + N <= last; first += N) f(Number<N>(), first);
  if constexpr (N > 1) in_groups<N / 2>(first, last, f);
}

// Adds to sums[n][q] the products of N rows (N, width) with the columns of a tile (width, Q registers).
template <int N, int Q, typename R>
inline void add_products(const R* rows, const R* tile, int64_t width, Vec<R> (&sums)[N][Q]) {
  for (int64_t d = 0; d < width; ++d) {
    Vec<R> column[Q];
    for (int q = 0; q < Q; ++q) column[q] = load<R>(tile + (d * Q + q) * Lanes<R>::W);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const Vec<R> value = all<R>(rows[n * width + d]);
      for (int q = 0; q < Q; ++q) sums[n][q] = fused(value, column[q], sums[n][q]);
    }
  }
}

// Adds the rows (count, width), weighted by `weights` (count, Q registers), to the tile `out` (width, Q registers).
template <int Q, typename R>
inline void add_weighted(const R* rows, const R* weights, int64_t count, int64_t width, R* out) {
  constexpr int W = Lanes<R>::W;
  in_groups<kSums / Q>(0, width, [&](auto number, int64_t d) {
    constexpr int N = decltype(number)::value;
    Vec<R> sums[N][Q];
    R* to = out + d * Q * W;
    for (int n = 0; n < N; ++n)
      for (int q = 0; q < Q; ++q) sums[n][q] = load<R>(to + (n * Q + q) * W);
    for (int64_t k = 0; k < count; ++k) {
      Vec<R> weight[Q];
      for (int q = 0; q < Q; ++q) weight[q] = load<R>(weights + (k * Q + q) * W);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const Vec<R> value = all<R>(rows[k * width + d + n]);
        for (int q = 0; q < Q; ++q) sums[n][q] = fused(value, weight[q], sums[n][q]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int q = 0; q < Q; ++q) store<R>(to + (n * Q + q) * W, sums[n][q]);
  });
}

// The other way round: adds the `queries` rows (queries, padded width), weighted by column k of `weights` (count, stride), to row k of
// `out` (count, padded width); M registers of channels.
template <int M, typename R>
inline void add_spread(const R* rows, const R* weights, int64_t queries, int64_t count, int64_t stride, int64_t padded_width, R* out) {
  constexpr int W = Lanes<R>::W;
  in_groups<kSums / M>(0, count, [&](auto number, int64_t k) {
    constexpr int N = decltype(number)::value;
    Vec<R> sums[N][M];
    R* to = out + k * padded_width;
    const R* weight = weights + k * stride;
    for (int n = 0; n < N; ++n)
      for (int m = 0; m < M; ++m) sums[n][m] = load<R>(to + n * padded_width + m * W);
    for (int64_t q = 0; q < queries; ++q) {
      Vec<R> row[M];
      for (int m = 0; m < M; ++m) row[m] = load<R>(rows + q * padded_width + m * W);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const Vec<R> value = all<R>(weight[n * stride + q]);
        for (int m = 0; m < M; ++m) sums[n][m] = fused(value, row[m], sums[n][m]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int m = 0; m < M; ++m) store<R>(to + n * padded_width + m * W, sums[n][m]);
  });
}

template <typename R>
inline void add_all_spread(const R* rows, const R* weights, int64_t queries, int64_t count, int64_t stride, int64_t padded_width, R* out) {
  constexpr int W = Lanes<R>::W;
  int64_t c = 0;
  for (; c + 2 * W <= padded_width; c += 2 * W) add_spread<2>(rows + c, weights, queries, count, stride, padded_width, out + c);
  if (c < padded_width) add_spread<1>(rows + c, weights, queries, count, stride, padded_width, out + c);
}

template <typename R>
inline int64_t round_up(int64_t width) {
  return (width + Lanes<R>::W - 1) / Lanes<R>::W * Lanes<R>::W;
}

// A register of numbers as they are computed with, from and to how they are stored.
inline Vec<float> load_as(const float* from) { return load<float>(from); }
inline Vec<double> load_as(const double* from) { return load<double>(from); }
inline Vec<float> load_as(const Bf16* from) {
  typedef uint16_t Half __attribute__((vector_size(M2AE_BYTES / 2)));
  Half half;
  __builtin_memcpy(&half, from, sizeof(half));
  return (Vec<float>)(__builtin_convertvector(half, IVec<float>) << 16);
}

inline void store_as(Vec<float> v, float* to) { store<float>(to, v); }
inline void store_as(Vec<double> v, double* to) { store<double>(to, v); }
inline void store_as(Vec<float> v, Bf16* to) {  // as narrow() does
  typedef uint16_t Half __attribute__((vector_size(M2AE_BYTES / 2)));
  typedef uint32_t Pattern __attribute__((vector_size(M2AE_BYTES)));
  const Pattern pattern = (Pattern)v, nan = (Pattern)((pattern & 0x7FFFFFFFu) > 0x7F800000u);
  const Pattern rounded = (pattern + 0x7FFFu + ((pattern >> 16) & 1u)) >> 16;
  const Half half = __builtin_convertvector((nan & 0x7FC0u) | (~nan & rounded), Half);
  __builtin_memcpy(to, &half, sizeof(half));
}

// The same of `count` numbers; the lanes left over are zero and not stored.
template <typename S>
inline Vec<Real<S>> load_some(const S* from, int64_t count) {
  constexpr int W = Lanes<Real<S>>::W;
  if (count >= W) return load_as(from);
  S padded[W] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load_as(padded);
}

template <typename S>
inline void store_some(Vec<Real<S>> v, int64_t count, S* to) {
  constexpr int W = Lanes<Real<S>>::W;
  if (count >= W) return store_as(v, to);
  S padded[W];
  store_as(v, padded);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

// Exchanges rows and columns of a square of registers: the off-diagonal halves, then those of every quarter, and so on. With fewer rows
// than lanes, every run of that many lanes is a square of its own.
template <int Half, typename R, size_t N>
inline void turn(Vec<R> (&square)[N]) {
  constexpr int W = Lanes<R>::W;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if (i & Half) continue;
    IVec<R> upper, lower;
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane) {
      upper[lane] = lane & Half ? W + lane - Half : lane;
      lower[lane] = lane & Half ? W + lane : lane + Half;
    }
    const Vec<R> a = square[i], b = square[i + Half];
    square[i] = shuffled(a, b, upper), square[i + Half] = shuffled(a, b, lower);
  }
  if constexpr (Half > 1) turn<Half / 2, R>(square);
}

// Visits rows (W lanes, width) in squares: f(channel, channels there, rows of the square), where rows from `count` on are zero.
template <typename S, typename F>
inline void by_squares(const S* from, int64_t stride, int64_t count, int64_t width, F&& f) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W;
  for (int64_t c = 0; c < width; c += W) {
    const int64_t channels = at_most(W, width - c);
    Vec<R> square[W];
    for (int i = 0; i < W; ++i) square[i] = i < count ? load_some(from + i * stride + c, channels) : Vec<R>{};
    f(c, channels, square);
  }
}

// Turns `count` rows, times a factor, into a tile (width, lanes); the lanes left over get zeros.
template <typename S>
inline void to_tile(const S* from, int64_t stride, int64_t count, int64_t width, Real<S> factor, int64_t lanes, Real<S>* tile) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W;
  for (int64_t lane = 0; lane < lanes; lane += W) {
    by_squares(from + lane * stride, stride, count - lane, width, [&](int64_t c, int64_t channels, Vec<R>(&square)[W]) {
      turn<W / 2, R>(square);
      for (int64_t d = 0; d < channels; ++d) store<R>(tile + (c + d) * lanes + lane, square[d] * factor);
    });
  }
}

// And back.
template <typename S>
inline void from_tile(const Real<S>* tile, int64_t lanes, int64_t count, int64_t width, Real<S> factor, S* to, int64_t stride) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W;
  for (int64_t lane = 0; lane < count; lane += W) {
    for (int64_t c = 0; c < width; c += W) {
      const int64_t channels = at_most(W, width - c), rows = at_most(W, count - lane);
      Vec<R> square[W];
      for (int d = 0; d < W; ++d) square[d] = d < channels ? load<R>(tile + (c + d) * lanes + lane) * factor : Vec<R>{};
      turn<W / 2, R>(square);
      for (int i = 0; i < rows; ++i) store_some(square[i], channels, to + (lane + i) * stride + c);
    }
  }
}

// Copies `count` rows as they are computed with to rows of `to_stride`, which is `width`, or the padded width, with zeros there.
template <typename S>
inline void read_rows(const S* from, int64_t stride, int64_t count, int64_t width, Real<S>* to, int64_t to_stride) {
  constexpr int W = Lanes<Real<S>>::W;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < to_stride; c += W)
      store_some(load_some(from + i * stride + c, width - c), to_stride - c, to + i * to_stride + c);
}

// And back, times a factor.
template <typename S>
inline void write_rows(const Real<S>* from, int64_t from_stride, int64_t count, int64_t width, Real<S> factor, S* to, int64_t stride) {
  constexpr int W = Lanes<Real<S>>::W;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < width; c += W)
      store_some(load_some(from + i * from_stride + c, width - c) * factor, width - c, to + i * stride + c);
}

template <typename S>
inline void clear_rows(int64_t count, int64_t width, S* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < width; ++d) to[i * stride + d] = S{};
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
