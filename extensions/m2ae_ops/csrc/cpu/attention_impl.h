// Self-attention of one head; see attention.h.
//
// Queries stand in lanes: a tile of one or two registers of queries runs over the keys, so that maxima and sums over keys need no
// exchange between lanes, and any number of keys is as good as another. Logits are kept in base 2. Where it is said who attends to whom,
// a tile takes the keys that one of its queries attends to, side by side, and lanes that do not attend get a weight of zero.
#pragma once

#include "attention.h"
#include "buckets_impl.h"
#include "tiles_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634074;

template <typename R> inline R root(R v);
template <> inline float root(float v) { return __builtin_sqrtf(v); }
template <> inline double root(double v) { return __builtin_sqrt(v); }

// Asks for rows of the next head, which are too far apart for the processor to guess; `from` are those of this head. Always inline:
// GCC takes a function that does nothing else for one without effect.
template <typename S>
__attribute__((always_inline)) inline void fetch_rows(const S* from, int64_t stride, const Head& head, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(S);
  const S* next = from + head.step(stride);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < head.width; c += kLine) __builtin_prefetch(next + i * stride + c, 0, 2);
}

// Below all logits, and what stands for the largest one of a query that attends to nothing; pairs that do not attend get twice that.
constexpr double kUnattended = -1e30;

// The keys and values (count, width) of a tile, and which of its queries attend to each, as bits; without `lanes` all of them do. `from`
// says whose they are, where they are not those of the head in order.
template <typename R>
struct Seen {
  const R *keys, *values;
  int64_t count;
  const uint32_t* lanes;
  const int32_t* from;
};

// Those that one of the queries `first`, ... attends to; `queries` is how many they are.
template <typename R>
inline Seen<R> choose_keys(const Head& head, int64_t first, int64_t queries, const R* keys, const R* values, Pieces& pieces) {
  if (!head.attends) return {keys, values, head.valid, nullptr, nullptr};
  uint32_t* lanes = pieces.take<uint32_t>(head.valid);
  int32_t* from = pieces.take<int32_t>(head.valid);
  const uint32_t *word = head.attends + first / 32 * head.tokens, own = uint32_t((uint64_t(1) << queries) - 1);
  int64_t count = 0;
  for (int64_t k = 0; k < head.valid; ++k) {
    const uint32_t here = word[k] >> first % 32 & own;
    lanes[count] = here, from[count] = int32_t(k);
    count += here != 0;
  }
  const int64_t width = head.width;
  R *some_keys = pieces.take<R>(head.valid * width), *some_values = pieces.take<R>(head.valid * width);
  if (4 * count >= 3 * head.valid) {  // Moving rows about would cost more than those that are not needed.
    for (int64_t k = 0; k < head.valid; ++k) lanes[k] = word[k] >> first % 32 & own;
    return {keys, values, head.valid, lanes, nullptr};
  }
  for (int64_t i = 0; i < count; ++i) {
    read_rows(keys + from[i] * width, width, 1, width, some_keys + i * width, width);
    read_rows(values + from[i] * width, width, 1, width, some_values + i * width, width);
  }
  return {some_keys, some_values, count, lanes, from};
}

// The lanes of register `q` among those of a tile.
template <typename R>
inline Mask<R> lanes_of(uint32_t lanes, int q) {
  const uint32_t own = lanes >> q * Lanes<R>::W;
#if defined(__AVX512DQ__)
  return Mask<R>(own);
#else
  IVec<R> bit;
  for (int i = 0; i < Lanes<R>::W; ++i) bit[i] = Int<R>(1) << i;
  return (all_int<R>(Int<R>(own)) & bit) != 0;
#endif
}

// One tile of `count` queries from `at` on against the keys and values (valid, width); `Local` where it is said who attends to whom.
template <int Q, bool Local, typename S>
inline void attend(const S* queries, const Head& head, int64_t at, int64_t count, const Real<S>* all_keys, const Real<S>* all_values, S* out,
                   Real<S>* largest, Real<S>* total, Pieces pieces) {
  using R = Real<S>;
  const auto [keys, values, seen, lanes, from] = choose_keys(head, at, count, all_keys, all_values, pieces);
  constexpr int W = Lanes<R>::W, kLanes = Q * W;
  const int64_t width = head.width;
  R *tile = pieces.take<R>(width * kLanes), *result = pieces.take<R>(width * kLanes), *weights = pieces.take<R>(kAttentionKeys * kLanes);
  to_tile(queries, 3 * head.row(), count, width, R(kLog2E) / root(R(width)), kLanes, tile);
  clear_rows(width, kLanes, result, kLanes);
  Vec<R> most[Q], sum[Q];
  for (int q = 0; q < Q; ++q) most[q] = all<R>(Local ? kUnattended : -__builtin_inf()), sum[q] = Vec<R>{};
  for (int64_t first = 0; first < seen; first += kAttentionKeys) {
    const int64_t block = at_most(kAttentionKeys, seen - first);
    Vec<R> before[Q];
    for (int q = 0; q < Q; ++q) before[q] = most[q];
    in_groups<kSums / Q>(0, block, [&](auto number, int64_t k) {
      constexpr int N = decltype(number)::value;
      Vec<R> logits[N][Q] = {};
      add_products<N, Q>(keys + (first + k) * width, tile, width, logits);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        for (int q = 0; q < Q; ++q) {
          if constexpr (Local) logits[n][q] = select(lanes_of<R>(lanes[first + k + n], q), logits[n][q], all<R>(2 * kUnattended));
          most[q] = most_of(logits[n][q], most[q]), store<R>(weights + ((k + n) * Q + q) * W, logits[n][q]);
        }
      }
    });
    if (first) {
      for (int q = 0; q < Q; ++q) {
        const Vec<R> shrink = exp2_below(before[q] - most[q]);
        sum[q] *= shrink;
        for (int64_t d = 0; d < width; ++d) store<R>(result + (d * Q + q) * W, load<R>(result + (d * Q + q) * W) * shrink);
      }
    }
    for (int64_t k = 0; k < block; ++k) {
      for (int q = 0; q < Q; ++q) {
        R* at = weights + (k * Q + q) * W;
        const Vec<R> weight = exp2_below(load<R>(at) - most[q]);
        sum[q] += weight, store<R>(at, weight);
      }
    }
    add_weighted<Q>(values + first * width, weights, block, width, result);
  }
  R ends[2][kLanes];
  for (int q = 0; q < Q; ++q) {
    if constexpr (Local) sum[q] = most_of(all<R>(1), sum[q]);  // Of a query that attends to anything the sum is at least one.
    for (int64_t d = 0; d < width; ++d) store<R>(result + (d * Q + q) * W, load<R>(result + (d * Q + q) * W) / sum[q]);
    store<R>(ends[0] + q * W, most[q]), store<R>(ends[1] + q * W, sum[q]);
  }
  for (int64_t i = 0; i < count; ++i) largest[i] = ends[0][i], total[i] = ends[1][i];
  from_tile(result, kLanes, count, width, R(1), out, head.row());
}

template <typename S>
void attention(const S* qkv, const Head& head, S* out, Real<S>* stats, void* scratch) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W;
  const int64_t row = head.row(), stride = 3 * row;
  Pieces pieces{static_cast<char*>(scratch)};
  R *keys = pieces.take<R>(head.valid * head.width), *values = pieces.take<R>(head.valid * head.width);
  read_rows(qkv + row, stride, head.valid, head.width, keys, head.width);
  read_rows(qkv + 2 * row, stride, head.valid, head.width, values, head.width);
  R *largest = stats, *total = stats + head.tokens;
  for (int64_t i = 0; i < head.valid;) {
    const int64_t left = head.valid - i, count = at_most(2 * W, left);
    for (int part = 0; part < 3; ++part) fetch_rows(qkv + i * stride + part * row, stride, head, count);
    auto run = head.attends ? (left > W ? attend<2, true, S> : attend<1, true, S>)
                            : (left > W ? attend<2, false, S> : attend<1, false, S>);
    run(qkv + i * stride, head, i, count, keys, values, out + i * row, largest + i, total + i, pieces);
    i += count;
  }
  const int64_t padding = head.tokens - head.valid;
  clear_rows(padding, head.width, out + head.valid * row, row);
  clear_rows(padding, 1, largest + head.valid, 1), clear_rows(padding, 1, total + head.valid, 1);
}

// Keys and values of a head, and the sums of their gradients (valid, padded width), those of the keys still without the scale.
template <typename R>
struct KeyGradients {
  const R *keys, *values;
  R *grad_keys, *grad_values;
};

// Room for the gradients of the keys and values that a tile has chosen, or those of all where it has them all.
template <typename R>
inline KeyGradients<R> gradients_of(const Seen<R>& seen, const KeyGradients<R>& all, int64_t padded_width, Pieces& pieces) {
  if (!seen.from) return all;
  KeyGradients<R> some{seen.keys, seen.values, pieces.take<R>(seen.count * padded_width), pieces.take<R>(seen.count * padded_width)};
  clear_rows(seen.count, padded_width, some.grad_keys, padded_width), clear_rows(seen.count, padded_width, some.grad_values, padded_width);
  return some;
}

// Adds rows (count, padded width) to the rows `from` of `to`.
template <typename R>
inline void add_back(const R* rows, const int32_t* from, int64_t count, int64_t padded_width, R* to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < padded_width; c += Lanes<R>::W) {
      R* here = to + from[i] * padded_width + c;
      store<R>(here, load<R>(here) + load<R>(rows + i * padded_width + c));
    }
}

// One tile of `count` queries from `at` on: adds to the gradients of keys and values, writes those of the queries.
template <int Q, bool Local, typename S>
inline void attend_backward(const S* grad, const S* queries, const S* out, const Real<S>* largest, const Real<S>* total, const Head& head,
                            int64_t at, int64_t count, const KeyGradients<Real<S>>& whole, S* grad_queries, Pieces pieces) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W, kLanes = Q * W;
  constexpr int64_t kKeys = kAttentionKeys / 2;
  const int64_t width = head.width, padded_width = round_up<R>(width), row = head.row();
  const R scale = R(1) / root(R(width));
  const Seen<R> seen = choose_keys(head, at, count, whole.keys, whole.values, pieces);
  const KeyGradients<R> of = gradients_of(seen, whole, padded_width, pieces);
  R *rows = pieces.take<R>(kLanes * padded_width), *flow = pieces.take<R>(kLanes * padded_width);
  R *tile = pieces.take<R>(width * kLanes), *flow_tile = pieces.take<R>(width * kLanes), *result = pieces.take<R>(width * kLanes);
  R *weights = pieces.take<R>(kKeys * kLanes), *slopes = pieces.take<R>(kKeys * kLanes);
  // Division by the sum of the weights goes into the gradient of the output, which then leaves nothing to do for single pairs.
  R inverse[kLanes] = {}, ends[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) inverse[i] = R(1) / total[i], ends[i] = -largest[i];
  Vec<R> less[Q], mean[Q];
  for (int q = 0; q < Q; ++q) {
    less[q] = load<R>(ends + q * W), mean[q] = Vec<R>{};
    const int64_t lane = q * W;
    by_squares(grad + lane * row, row, count - lane, width, [&](int64_t c, int64_t channels, Vec<R>(&square)[W]) {
      for (int i = 0; i < W; ++i) square[i] *= inverse[lane + i], store<R>(flow + (lane + i) * padded_width + c, square[i]);
      turn<W / 2, R>(square);
      for (int64_t d = 0; d < channels; ++d) store<R>(flow_tile + (c + d) * kLanes + lane, square[d]);
    });
    by_squares(out + lane * row, row, count - lane, width, [&](int64_t c, int64_t channels, Vec<R>(&square)[W]) {
      turn<W / 2, R>(square);
      for (int64_t d = 0; d < channels; ++d) mean[q] -= load<R>(flow_tile + (c + d) * kLanes + lane) * square[d];
    });
  }
  read_rows(queries, 3 * row, count, width, rows, padded_width);
  to_tile(queries, 3 * row, count, width, scale * R(kLog2E), kLanes, tile);
  clear_rows(width, kLanes, result, kLanes);
  for (int64_t first = 0; first < seen.count; first += kKeys) {
    const int64_t block = at_most(kKeys, seen.count - first);
    in_groups<kSums / Q>(0, block, [&](auto number, int64_t k) {
      constexpr int N = decltype(number)::value;
      Vec<R> sums[N][Q];
      for (int n = 0; n < N; ++n)
        for (int q = 0; q < Q; ++q) sums[n][q] = less[q];
      add_products<N, Q>(seen.keys + (first + k) * width, tile, width, sums);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        for (int q = 0; q < Q; ++q) {
          Vec<R> weight = exp2_below(sums[n][q]);
          if constexpr (Local) weight = select(lanes_of<R>(seen.lanes[first + k + n], q), weight, Vec<R>{});
          store<R>(weights + ((k + n) * Q + q) * W, weight);
        }
      }
      for (int n = 0; n < N; ++n)
        for (int q = 0; q < Q; ++q) sums[n][q] = mean[q];
      add_products<N, Q>(seen.values + (first + k) * width, flow_tile, width, sums);
      for (int n = 0; n < N; ++n)
        for (int q = 0; q < Q; ++q) {
          const int64_t place = ((k + n) * Q + q) * W;
          store<R>(slopes + place, load<R>(weights + place) * sums[n][q]);
        }
    });
    add_weighted<Q>(seen.keys + first * width, slopes, block, width, result);
    add_all_spread(flow, weights, count, block, kLanes, padded_width, of.grad_values + first * padded_width);
    add_all_spread(rows, slopes, count, block, kLanes, padded_width, of.grad_keys + first * padded_width);
  }
  if (seen.from) {
    add_back(of.grad_keys, seen.from, seen.count, padded_width, whole.grad_keys);
    add_back(of.grad_values, seen.from, seen.count, padded_width, whole.grad_values);
  }
  from_tile(result, kLanes, count, width, scale, grad_queries, 3 * row);
}

template <typename S>
void attention_backward(const S* grad, const S* qkv, const S* out, const Real<S>* stats, const Head& head, S* grad_qkv, void* scratch) {
  using R = Real<S>;
  constexpr int W = Lanes<R>::W;
  const int64_t row = head.row(), stride = 3 * row, width = head.width, padded_width = round_up<R>(width);
  Pieces pieces{static_cast<char*>(scratch)};
  R *keys = pieces.take<R>(head.valid * width), *values = pieces.take<R>(head.valid * width);
  const KeyGradients<R> of{keys, values, pieces.take<R>(head.valid * padded_width), pieces.take<R>(head.valid * padded_width)};
  read_rows(qkv + row, stride, head.valid, width, keys, width);
  read_rows(qkv + 2 * row, stride, head.valid, width, values, width);
  clear_rows(head.valid, padded_width, of.grad_keys, padded_width), clear_rows(head.valid, padded_width, of.grad_values, padded_width);
  const R *largest = stats, *total = stats + head.tokens;
  for (int64_t i = 0; i < head.valid;) {
    const int64_t left = head.valid - i, count = at_most(2 * W, left);
    for (int part = 0; part < 3; ++part) fetch_rows(qkv + i * stride + part * row, stride, head, count);
    fetch_rows(grad + i * row, row, head, count), fetch_rows(out + i * row, row, head, count);
    auto run = head.attends ? (left > W ? attend_backward<2, true, S> : attend_backward<1, true, S>)
                            : (left > W ? attend_backward<2, false, S> : attend_backward<1, false, S>);
    run(grad + i * row, qkv + i * stride, out + i * row, largest + i, total + i, head, i, count, of, grad_qkv + i * stride, pieces);
    i += count;
  }
  write_rows(of.grad_keys, padded_width, head.valid, width, R(1) / root(R(width)), grad_qkv + row, stride);
  write_rows(of.grad_values, padded_width, head.valid, width, R(1), grad_qkv + 2 * row, stride);
  for (int part = 0; part < 3; ++part) clear_rows(head.tokens - head.valid, width, grad_qkv + part * row + head.valid * stride, stride);
}

template <typename S>
constexpr AttentionKernels<S> kAttentionTable{attention<S>, attention_backward<S>};

}  // namespace

template <> const AttentionKernels<float>& table<AttentionKernels<float>>() { return kAttentionTable<float>; }
template <> const AttentionKernels<double>& table<AttentionKernels<double>>() { return kAttentionTable<double>; }
template <> const AttentionKernels<Bf16>& table<AttentionKernels<Bf16>>() { return kAttentionTable<Bf16>; }

}  // namespace m2ae::M2AE_ISA
