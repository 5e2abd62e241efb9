// Self-attention with narrow heads. Heads of samples are shared out among the threads; each is worked on by one of them, so that the
// result does not depend on their number.
#include "attention.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "storage.h"

namespace m2ae {
namespace {

// Gathers who attends to whom (B, L, L), queries first, as the bits of `Head::attends`, (B, words, L).
std::vector<uint32_t> pack_pairs(const Tensor& attend) {
  const Tensor pairs = attend.contiguous();
  const int64_t B = pairs.size(0), L = pairs.size(1), words = (L + 31) / 32;
  std::vector<uint32_t> bits(B * words * L, 0);
  at::parallel_for(0, B * words, grain(32 * L / 8), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t* to = bits.data() + i * L;
      for (int64_t q = i % words * 32, bit = 0; q < L && bit < 32; ++q, ++bit) {
        const bool* from = read<bool>(pairs) + (i / words * L + q) * L;
        for (int64_t k = 0; k < L; ++k) to[k] |= uint32_t(from[k]) << bit;
      }
    }
  });
  return bits;
}

// The heads of a batch: how many tokens of each sample are real, who attends to whom, and the size of one head's work.
struct Heads {
  Tensor counts;
  std::vector<uint32_t> pairs;
  int64_t B, L, H, D;

  Heads(const Tensor& qkv, const std::optional<Tensor>& valid, const std::optional<Tensor>& attend)
      : counts(valid ? valid->contiguous() : Tensor()),
        pairs(attend ? pack_pairs(*attend) : std::vector<uint32_t>()),
        B(qkv.size(0)), L(qkv.size(1)), H(qkv.size(3)), D(qkv.size(4)) {}

  Head head(int64_t sample, int64_t number) const {
    const int64_t valid = counts.defined() ? std::clamp<int64_t>(read<int64_t>(counts)[sample], 0, L) : L;
    return {L, valid, H, D, number + 1 == H, pairs.empty() ? nullptr : pairs.data() + sample * ((L + 31) / 32) * L};
  }

  // Runs work(head, first token of the sample, first channel of the head, which head of all, scratch).
  template <typename R, typename F>
  void each(F&& work) const {
    const int64_t cost = L * L * D / 16 + L * D / 4;
    at::parallel_for(0, B * H, grain(cost), [&](int64_t begin, int64_t end) {
      const Scratch scratch(attention_scratch<R>({L, L, H, D, false, pairs.data()}));
      for (int64_t i = begin; i < end; ++i) work(head(i / H, i % H), i / H * L, i % H * D, i, scratch.get());
    });
  }
};

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& qkv, const std::optional<Tensor>& counts, const std::optional<Tensor>& attend) {
  const Tensor joint = storable(qkv);
  const Heads heads(joint, counts, attend);
  const int64_t L = heads.L, row = heads.H * heads.D;
  Tensor out = at::empty({heads.B, L, row}, joint.options());
  Tensor stats = at::empty({heads.B, heads.H, 2, L}, joint.options().dtype(compute_type(joint)));
  by_storage(joint, "attention", [&](auto tag) {
    using S = decltype(tag);
    using R = Real<S>;
    heads.each<R>([&](const Head& head, int64_t token, int64_t channel, int64_t number, void* scratch) {
      attention_kernels<S>().forward(read<S>(joint) + token * 3 * row + channel, head, write<S>(out) + token * row + channel,
                                     write<R>(stats) + number * 2 * L, scratch);
    });
  });
  return {out.to(qkv.scalar_type()), stats};
}

Tensor attention_backward_cpu(const Tensor& grad, const Tensor& qkv, const std::optional<Tensor>& counts,
                              const std::optional<Tensor>& attend, const Tensor& out, const Tensor& stats) {
  const Tensor joint = storable(qkv), flow = storable(grad.to(joint.scalar_type())), result = storable(out);
  const Tensor saved = stats.contiguous();
  const Heads heads(joint, counts, attend);
  const int64_t L = heads.L, row = heads.H * heads.D;
  Tensor grad_joint = at::empty(joint.sizes(), joint.options());
  by_storage(joint, "attention_backward", [&](auto tag) {
    using S = decltype(tag);
    using R = Real<S>;
    heads.each<R>([&](const Head& head, int64_t token, int64_t channel, int64_t number, void* scratch) {
      const int64_t at = token * row + channel, joint_at = token * 3 * row + channel;
      attention_kernels<S>().backward(read<S>(flow) + at, read<S>(joint) + joint_at, read<S>(result) + at, read<R>(saved) + number * 2 * L,
                                      head, write<S>(grad_joint) + joint_at, scratch);
    });
  });
  return grad_joint.to(qkv.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("attention", attention_cpu);
  m.impl("attention_backward", attention_backward_cpu);
}

}  // namespace m2ae
