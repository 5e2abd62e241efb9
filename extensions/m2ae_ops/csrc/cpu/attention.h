// What the kernels of self-attention offer: plain functions on one head of one sample, behind a table of pointers. The rule about
// headers of kernels.h holds here too.
#pragma once

#include "kernels.h"
#include "patches.h"

namespace m2ae {

// Where one head of one sample lies in the joint projection (tokens, 3, heads, width): pointers stand at its first query. Tokens from
// `valid` on are padding: nothing attends to them, they attend to nothing and get zeros.
struct Head {
  int64_t tokens, valid, heads, width;
  bool last;  // of its sample
  const uint32_t* attends;  // (words, tokens): bit q of word w of a key says whether query 32 w + q attends to it; null: all do

  constexpr int64_t row() const { return heads * width; }  // numbers of a token in the output
  // From this head to the next one, of this sample or the one after, where a token takes `stride` numbers.
  constexpr int64_t step(int64_t stride) const { return last ? tokens * stride - (heads - 1) * width : width; }
};

constexpr int64_t kAttentionKeys = 128;   // keys that the way forward works on at a time; the way back takes half of them
constexpr int64_t kAttentionLanes = 32;   // queries that are worked on at a time, at most
constexpr int64_t kWidest = 16;           // numbers in the widest register, at most

// Bytes of scratch that either kernel asks for.
template <typename R>
constexpr size_t attention_scratch(const Head& head) {
  const int64_t padded_width = (head.width + kWidest - 1) / kWidest * kWidest;
  const int64_t rows = head.valid * (head.attends ? 8 : 4), lists = head.attends ? 2 * head.valid * sizeof(uint32_t) : 0;
  return (rows * padded_width + kAttentionLanes * (kAttentionKeys + 5 * padded_width)) * sizeof(R) + lists + 18 * (64 + kPieceGap);
}

// `stats` (2, tokens) holds of each query the largest logit times log2(e), and the sum of exp(logit - largest).
template <typename S>
struct AttentionKernels {
  using R = Real<S>;
  void (*forward)(const S* qkv, const Head& head, S* out, R* stats, void* scratch);
  // `grad` and `out` are (tokens, heads, width), `grad_qkv` lies like `qkv`.
  void (*backward)(const S* grad, const S* qkv, const S* out, const R* stats, const Head& head, S* grad_qkv, void* scratch);
};

M2AE_DECLARE_TABLE(AttentionKernels<float>)
M2AE_DECLARE_TABLE(AttentionKernels<double>)
M2AE_DECLARE_TABLE(AttentionKernels<Bf16>)

template <typename S> const AttentionKernels<S>& attention_kernels() { return of_processor<AttentionKernels<S>>(); }

}  // namespace m2ae
