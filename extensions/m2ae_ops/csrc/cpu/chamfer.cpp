// Chamfer distance and loss: small patches go sixteen pairs at a time to the patch kernel, larger clouds through two
// nearest-point searches. A pair belongs to one thread and its sums run in the order of its points.
#include <ATen/ops/clamp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "common.h"
#include "nearest.h"

namespace m2ae {
namespace {

constexpr int64_t kFewPairs = 4;     // fewer leave most lanes of the patch kernel idle
// The first choice of a pair with a coordinate that is NaN or infinite: the gradients of such a pair are NaN.
constexpr int32_t kNoGradient = std::numeric_limits<int32_t>::min();

bool are_patches(int64_t pairs, int64_t n, int64_t m) { return pairs >= kFewPairs && std::max(n, m) <= kPatch; }

// Both sides of a batch of pairs, contiguous and of the kernel type.
template <typename T>
struct Sides {
  const T *a, *b;
  int64_t pairs, n, m;
  Sides(const Tensor& p, const Tensor& q)
      : a(p.const_data_ptr<T>()), b(q.const_data_ptr<T>()), pairs(p.size(0)), n(p.size(1)), m(q.size(1)) {}
};

// Searches blocks of up to kBucket pairs of patches, in parallel: for each, work(first pair, pairs, search) calls search(rows of indices
// both ways) and gets the squared distances both ways, in columns.
template <typename T, typename F>
void for_patches(const Sides<T>& of, const F& work) {
  at::parallel_for(0, (of.pairs + kBucket - 1) / kBucket, grain(2 * of.n * of.m), [&](int64_t begin, int64_t end) {
    alignas(64) T forth[kPatch * kBucket], back[kPatch * kBucket];
    for (int64_t first = begin * kBucket; first < std::min(of.pairs, end * kBucket); first += kBucket) {
      const int64_t pairs = std::min(kBucket, of.pairs - first);
      const T *a = of.a + first * of.n * 3, *b = of.b + first * of.m * 3;
      work(first, pairs, [&](int32_t* i1, int32_t* i2) {
        kernels<T>().patches(a, b, pairs, of.n, of.m, forth, i1, back, i2);
        return std::make_pair(forth, back);
      });
    }
  });
}

// Writes columns of (count, kBucket) to rows of (pairs, count).
template <typename T>
void columns_to_rows(const T* columns, int64_t pairs, int64_t count, T* rows) {
  for (int64_t p = 0; p < pairs; ++p) {
    for (int64_t i = 0; i < count; ++i) rows[p * count + i] = columns[i * kBucket + p];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_cpu(const Tensor& a, const Tensor& b) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  const auto indices = p.options().dtype(at::kLong);
  Tensor d1 = at::empty({B, n}, p.options()), d2 = at::empty({B, m}, p.options());
  Tensor i1 = at::empty({B, n}, indices), i2 = at::empty({B, m}, indices);
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer", [&] {
    if (!are_patches(B, n, m)) {
      nearest_both<scalar_t>(p, q, d1, i1, d2, i2);
      return;
    }
    scalar_t *to_d1 = d1.mutable_data_ptr<scalar_t>(), *to_d2 = d2.mutable_data_ptr<scalar_t>();
    int64_t *to_i1 = i1.mutable_data_ptr<int64_t>(), *to_i2 = i2.mutable_data_ptr<int64_t>();
    for_patches(Sides<scalar_t>(p, q), [&](int64_t first, int64_t pairs, const auto& search) {
      int32_t forth[kPatch * kBucket], back[kPatch * kBucket];
      const auto [sqdist_forth, sqdist_back] = search(forth, back);
      columns_to_rows(sqdist_forth, pairs, n, to_d1 + first * n);
      columns_to_rows(sqdist_back, pairs, m, to_d2 + first * m);
      std::copy_n(forth, pairs * n, to_i1 + first * n);
      std::copy_n(back, pairs * m, to_i2 + first * m);
    });
  });
  return {d1, d2, i1, i2};
}

// Places as the gradient kernel takes them; one that does not fit is none.
Tensor narrowed(const Tensor& idx) {
  return idx.clamp(-1, std::numeric_limits<int32_t>::max()).to(at::kInt).contiguous();
}

// Calls weigh(pair, choices, memory for weights) and then writes the gradients, for all pairs in parallel; where it returns false they are
// NaN. Gradients without a batch are left out.
template <typename T, typename F>
void write_gradients(const char* op, const Tensor& p, const Tensor& q, const Tensor& i1, const Tensor& i2, Tensor& grad_a, Tensor& grad_b, const F& weigh) {
  const Sides<T> of(p, q);
  const int64_t n = of.n, m = of.m;
  const int32_t *forth = i1.const_data_ptr<int32_t>(), *back = i2.const_data_ptr<int32_t>();
  T* to_a = grad_a.size(0) ? grad_a.mutable_data_ptr<T>() : nullptr;
  T* to_b = grad_b.size(0) ? grad_b.mutable_data_ptr<T>() : nullptr;
  at::parallel_for(0, of.pairs, grain(4 * (n + m)), [&](int64_t begin, int64_t end) {
    const Scratch scratch(pair_scratch<T>(n, m)), weights((n + m + 2 * kBucket) * sizeof(T));
    PairChoices<T> choices{n, m, nullptr, nullptr, {}, {1, 1}, of.a + of.pairs * n * 3, of.b + of.pairs * m * 3, scratch.get()};
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t x = pair * n, y = pair * m;
      choices.forth = forth + x, choices.back = back + y;
      if (!weigh(pair, choices, static_cast<T*>(weights.get()))) {
        if (to_a) std::fill_n(to_a + 3 * x, 3 * n, std::numeric_limits<T>::quiet_NaN());
        if (to_b) std::fill_n(to_b + 3 * y, 3 * m, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      const bool known = kernels<T>().pair_gradients(of.a + 3 * x, of.b + 3 * y, choices, to_a ? to_a + 3 * x : nullptr,
                                                     to_b ? to_b + 3 * y : nullptr);
      TORCH_CHECK_INDEX(known, op, ": an index of pair ", pair, " is outside 0..", m - 1, " (i1) or 0..", n - 1, " (i2)");
    }
  });
}

std::tuple<Tensor, Tensor> chamfer_backward_cpu(const Tensor& grad1, const Tensor& grad2, const Tensor& a, const Tensor& b,
                                                const Tensor& i1, const Tensor& i2) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const Tensor g1 = grad1.to(p.scalar_type()).contiguous(), g2 = grad2.to(p.scalar_type()).contiguous();
  const Tensor first = narrowed(i1), second = narrowed(i2);
  const int64_t n = p.size(1), m = q.size(1);
  Tensor grad_a = at::empty(p.sizes(), p.options()), grad_b = at::empty(q.sizes(), p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_backward", [&] {
    const scalar_t *flow1 = g1.const_data_ptr<scalar_t>(), *flow2 = g2.const_data_ptr<scalar_t>();
    write_gradients<scalar_t>("chamfer_backward", p, q, first, second, grad_a, grad_b,
                              [&](int64_t pair, PairChoices<scalar_t>& choices, scalar_t*) {
                                choices.weight[0] = flow1 + pair * n, choices.weight[1] = flow2 + pair * m;
                                return true;
                              });
  });
  return {grad_a.to(a.scalar_type()), grad_b.to(b.scalar_type())};
}

// The sum of the distances of one cloud, or of their roots, clamped.
template <typename T>
double row_sum(const T* sqdist, int64_t count, bool root) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += root ? std::sqrt(std::max(sqdist[i], T(kSmallestRoot))) : sqdist[i];
  return sum;
}

// The loss of one pair from its sums. The L1 form is the mean of both ways.
inline double pair_loss(double forth, int64_t n, double back, int64_t m, bool root) {
  const int64_t ways = root ? 2 : 1;
  return forth / double(ways * n) + back / double(ways * m);
}

template <typename T>
void patch_losses(const Tensor& p, const Tensor& q, bool root, T* losses, int32_t* i1, int32_t* i2) {
  const Sides<T> of(p, q);
  for_patches(of, [&](int64_t first, int64_t pairs, const auto& search) {
    double forth[kBucket], back[kBucket];
    const auto [sqdist_forth, sqdist_back] = search(i1 + first * of.n, i2 + first * of.m);
    kernels<T>().column_sums(sqdist_forth, of.n, root, forth);
    kernels<T>().column_sums(sqdist_back, of.m, root, back);
    for (int64_t pair = 0; pair < pairs; ++pair) losses[first + pair] = T(pair_loss(forth[pair], of.n, back[pair], of.m, root));
  });
}

template <typename T>
void cloud_losses(const Tensor& d1, const Tensor& d2, bool root, T* losses) {
  const int64_t n = d1.size(1), m = d2.size(1);
  const T *forth = d1.const_data_ptr<T>(), *back = d2.const_data_ptr<T>();
  at::parallel_for(0, d1.size(0), grain(n + m), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      losses[c] = T(pair_loss(row_sum(forth + c * n, n, root), n, row_sum(back + c * m, m, root), m, root));
    }
  });
}

// Makes the loss of a pair with a NaN coordinate NaN, and notes in i1 which pairs have no gradient. The searches take NaN distances as
// infinite, so that only pairs whose loss is infinite have such coordinates.
template <typename T>
void mark_broken(const Sides<T>& of, T* losses, int32_t* i1) {
  for (int64_t pair = 0; pair < of.pairs; ++pair) {
    if (!std::isinf(losses[pair])) continue;
    bool finite = true;
    const auto check = [&](T value) {
      finite = finite && std::isfinite(value);
      if (std::isnan(value)) losses[pair] = value;
    };
    std::for_each_n(of.a + pair * of.n * 3, of.n * 3, check);
    std::for_each_n(of.b + pair * of.m * 3, of.m * 3, check);
    if (!finite) i1[pair * of.n] = kNoGradient;
  }
}

std::tuple<Tensor, Tensor, Tensor> chamfer_chosen_cpu(const Tensor& a, const Tensor& b, bool root) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  const auto indices = p.options().dtype(at::kInt);
  Tensor losses = at::empty({B}, p.options());
  if (are_patches(B, n, m)) {
    Tensor i1 = at::empty({B, n}, indices), i2 = at::empty({B, m}, indices);
    AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_chosen", [&] {
      patch_losses<scalar_t>(p, q, root, losses.mutable_data_ptr<scalar_t>(), i1.mutable_data_ptr<int32_t>(),
                             i2.mutable_data_ptr<int32_t>());
      mark_broken(Sides<scalar_t>(p, q), losses.mutable_data_ptr<scalar_t>(), i1.mutable_data_ptr<int32_t>());
    });
    return {losses, i1, i2};
  }
  const auto [d1, d2, to_b, to_a] = chamfer_cpu(p, q);
  const Tensor i1 = to_b.to(at::kInt), i2 = to_a.to(at::kInt);
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_chosen", [&, &d1 = d1, &d2 = d2] {
    cloud_losses<scalar_t>(d1, d2, root, losses.mutable_data_ptr<scalar_t>());
    mark_broken(Sides<scalar_t>(p, q), losses.mutable_data_ptr<scalar_t>(), i1.mutable_data_ptr<int32_t>());
  });
  return {losses, i1, i2};
}

std::tuple<Tensor, Tensor> chamfer_chosen_backward_cpu(const Tensor& grad, const Tensor& a, const Tensor& b, const Tensor& i1,
                                                       const Tensor& i2, bool root, bool want_a, bool want_b) {
  const Tensor p = to_compute(a), q = to_compute(b), flow = grad.to(p.scalar_type());
  const Tensor first = i1.contiguous(), second = i2.contiguous();
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1), stride = flow.stride(0);
  Tensor grad_a = at::empty({want_a ? B : 0, n, 3}, p.options()), grad_b = at::empty({want_b ? B : 0, m, 3}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_chosen_backward", [&] {
    const Sides<scalar_t> of(p, q);
    const scalar_t* flows = flow.const_data_ptr<scalar_t>();
    const auto weigh = [&](int64_t pair, PairChoices<scalar_t>& choices, scalar_t* weights) {
      if (choices.forth[0] == kNoGradient) return false;
      const int64_t ways = root ? 2 : 1;
      choices.even[0] = flows[pair * stride] / scalar_t(ways * n), choices.even[1] = flows[pair * stride] / scalar_t(ways * m);
      const scalar_t *at_a = of.a + pair * n * 3, *at_b = of.b + pair * m * 3;
      if (!root) return true;
      scalar_t* back = weights + padded(n);
      kernels<scalar_t>().root_weights(at_a, at_b, choices.forth, n, weights);
      kernels<scalar_t>().root_weights(at_b, at_a, choices.back, m, back);
      choices.weight[0] = weights, choices.weight[1] = back;
      return true;
    };
    if (want_a || want_b) write_gradients<scalar_t>("chamfer_chosen_backward", p, q, first, second, grad_a, grad_b, weigh);
  });
  return {grad_a.to(a.scalar_type()), grad_b.to(b.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("chamfer", chamfer_cpu);
  m.impl("chamfer_backward", chamfer_backward_cpu);
  m.impl("chamfer_chosen", chamfer_chosen_cpu);
  m.impl("chamfer_chosen_backward", chamfer_chosen_backward_cpu);
}

}  // namespace m2ae
