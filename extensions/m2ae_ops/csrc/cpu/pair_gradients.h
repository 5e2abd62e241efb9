// Gradients of the squared distances of chosen pairs, for one pair of clouds at a time.
#pragma once

#include <cstring>

#include "common.h"

namespace m2ae {

// Which point of the other cloud each point chose, and what its pair weighs: `weight`, or `even` for all where that is null. Point i
// finds its entries at i * kStride.
template <typename T, typename Index, int kStride>
struct Choices {
  const T* weight;
  T even;
  const Index* idx;
  // The choices of pair p of those that lie side by side.
  Choices of(int64_t p) const { return {weight ? weight + p : nullptr, even, idx + p}; }
};

// Sums are kept as (x, y, z, unused), one vector each. What a point gets through its own choice and through being chosen adds
// up apart, as in the reference; it also keeps the two ways independent of each other, so that the processor overlaps them.
template <typename T>
class PairGradients {
 public:
  // For pairs of n and m points that lie in the contiguous tensors a and b.
  PairGradients(const Tensor& a, const Tensor& b)
      : n_(a.size(1)), m_(b.size(1)), end_a_(a.const_data_ptr<T>() + a.numel()), end_b_(b.const_data_ptr<T>() + b.numel()),
        scratch_(3 * (n_ + m_) * sizeof(Quad)) {
    a_own_ = static_cast<Quad*>(scratch_.get()), b_own_ = a_own_ + n_, a_chosen_ = b_own_ + m_, b_chosen_ = a_chosen_ + n_;
    last_a_ = reinterpret_cast<T*>(b_chosen_ + m_), last_b_ = last_a_ + 4 * n_;
  }

  int64_t n() const { return n_; }
  int64_t m() const { return m_; }

  // Writes the sums of weight * (a[i] - b[idx[i]]), and of the same from b to a, to the gradients (n, 3) and (m, 3); a null pointer
  // leaves one out.
  template <typename Index, int kStride>
  void run(const T* a, const T* b, const Choices<T, Index, kStride>& forth, const Choices<T, Index, kStride>& back, T* grad_a,
           T* grad_b) {
    a = readable(a, n_, end_a_, last_a_), b = readable(b, m_, end_b_, last_b_);
    std::memset(static_cast<void*>(a_chosen_), 0, (n_ + m_) * sizeof(Quad));
    if (forth.weight) {
      add_all<true>(a, b, forth, back);
    } else {
      add_all<false>(a, b, forth, back);
    }
    // Weights that are the same for all pairs are left until here.
    const T of_a = forth.weight ? T(1) : forth.even, of_b = back.weight ? T(1) : back.even;
    if (grad_a) store(a_own_, of_a, a_chosen_, of_b, n_, grad_a);
    if (grad_b) store(b_own_, of_b, b_chosen_, of_a, m_, grad_b);
  }

 private:
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));

  // Points are read as four values, so those at the very end of a tensor are copied to where there is one more.
  static const T* readable(const T* points, int64_t count, const T* end, T* copy) {
    if (points + 3 * count < end) return points;
    std::memcpy(copy, points, 3 * count * sizeof(T));
    copy[3 * count] = T(0);
    return copy;
  }

  template <bool kWeighted, typename Index, int kStride>
  void add_all(const T* a, const T* b, const Choices<T, Index, kStride>& forth, const Choices<T, Index, kStride>& back) {
    Quad *const a_own = a_own_, *const b_own = b_own_, *const a_chosen = a_chosen_, *const b_chosen = b_chosen_;
    const int64_t n = n_, m = m_, both = std::min(n, m);
    for (int64_t i = 0; i < both; ++i) {
      add<kWeighted>(forth, i, a, b, a_own, b_chosen);
      add<kWeighted>(back, i, b, a, b_own, a_chosen);
    }
    for (int64_t i = both; i < n; ++i) add<kWeighted>(forth, i, a, b, a_own, b_chosen);
    for (int64_t i = both; i < m; ++i) add<kWeighted>(back, i, b, a, b_own, a_chosen);
  }

  template <bool kWeighted, typename Index, int kStride>
  static void add(const Choices<T, Index, kStride>& choices, int64_t i, const T* from, const T* to, Quad* own, Quad* chosen) {
    const int64_t other = choices.idx[i * kStride];
    Quad flow = load(from + 3 * i) - load(to + 3 * other);
    if constexpr (kWeighted) flow = choices.weight[i * kStride] * flow;
    own[i] = flow;
    chosen[other] -= flow;
  }

  static Quad load(const T* point) {
    Quad out;
    std::memcpy(&out, point, sizeof(Quad));
    return out;
  }

  // The last point is written apart: four values would reach over the end.
  static void store(const Quad* own, T of_own, const Quad* chosen, T of_chosen, int64_t count, T* out) {
    for (int64_t i = 0; i + 1 < count; ++i) {
      const Quad sum = of_own * own[i] + of_chosen * chosen[i];
      std::memcpy(out + 3 * i, &sum, sizeof(Quad));
    }
    const Quad sum = of_own * own[count - 1] + of_chosen * chosen[count - 1];
    std::memcpy(out + 3 * (count - 1), &sum, 3 * sizeof(T));
  }

  int64_t n_, m_;
  const T *end_a_, *end_b_;
  Scratch scratch_;
  Quad *a_own_, *b_own_, *a_chosen_, *b_chosen_;
  T *last_a_, *last_b_;
};

}  // namespace m2ae
