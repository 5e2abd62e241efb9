// Gradients of the squared distances of chosen pairs, for one pair of clouds at a time.
#pragma once

#include <cstring>

#include "common.h"

namespace m2ae {

// Which point of the other cloud each point chose, and the weight of that pair; point i finds them at i * stride.
template <typename T, typename Index>
struct Choices {
  const T* weight;
  int64_t weight_stride;
  const Index* idx;
  int64_t idx_stride;
  // The choices of pair p of those that lie side by side.
  Choices of(int64_t p) const { return {weight_stride ? weight + p : weight, weight_stride, idx + p, idx_stride}; }
};

// Points are kept as (x, y, z, unused), one vector each. What a point gets through its own choice and through being chosen adds
// up apart, as in the reference; it also keeps the two ways independent of each other, so that the processor overlaps them.
template <typename T>
class PairGradients {
 public:
  PairGradients(int64_t n, int64_t m) : n_(n), m_(m), scratch_(3 * (n + m) * sizeof(Quad)) {
    a_ = static_cast<Quad*>(scratch_.get()), b_ = a_ + n, a_own_ = b_ + m, b_own_ = a_own_ + n;
    a_chosen_ = b_own_ + m, b_chosen_ = a_chosen_ + n;
  }

  int64_t n() const { return n_; }
  int64_t m() const { return m_; }

  // Writes the sums of weight * (a[i] - b[idx[i]]), and of the same from b to a, to the gradients (n, 3) and (m, 3); a null pointer
  // leaves one out.
  template <typename Index>
  void run(const T* a, const T* b, const Choices<T, Index>& forth, const Choices<T, Index>& back, T* grad_a, T* grad_b) {
    load(a, n_, a_);
    load(b, m_, b_);
    std::memset(static_cast<void*>(a_chosen_), 0, (n_ + m_) * sizeof(Quad));
    const int64_t both = std::min(n_, m_);
    for (int64_t i = 0; i < both; ++i) {
      add(forth, i, a_, b_, a_own_, b_chosen_);
      add(back, i, b_, a_, b_own_, a_chosen_);
    }
    for (int64_t i = both; i < n_; ++i) add(forth, i, a_, b_, a_own_, b_chosen_);
    for (int64_t i = both; i < m_; ++i) add(back, i, b_, a_, b_own_, a_chosen_);
    if (grad_a) store(a_own_, a_chosen_, n_, grad_a);
    if (grad_b) store(b_own_, b_chosen_, m_, grad_b);
  }

 private:
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));

  template <typename Index>
  static void add(const Choices<T, Index>& choices, int64_t i, const Quad* from, const Quad* to, Quad* own, Quad* chosen) {
    const int64_t other = choices.idx[i * choices.idx_stride];
    const Quad flow = choices.weight[i * choices.weight_stride] * (from[i] - to[other]);
    own[i] = flow;
    chosen[other] -= flow;
  }

  // The last point is copied apart here and below: four values would reach over the end.
  static void load(const T* points, int64_t count, Quad* out) {
    for (int64_t i = 0; i + 1 < count; ++i) std::memcpy(out + i, points + 3 * i, sizeof(Quad));
    const T* last = points + 3 * (count - 1);
    out[count - 1] = Quad{last[0], last[1], last[2], 0};
  }

  static void store(const Quad* own, const Quad* chosen, int64_t count, T* out) {
    for (int64_t i = 0; i < count; ++i) {
      const Quad sum = own[i] + chosen[i];
      std::memcpy(out + 3 * i, &sum, i + 1 < count ? sizeof(Quad) : 3 * sizeof(T));
    }
  }

  int64_t n_, m_;
  Scratch scratch_;
  Quad *a_, *b_, *a_own_, *b_own_, *a_chosen_, *b_chosen_;
};

}  // namespace m2ae
