// Chamfer distance and loss: small patches go sixteen pairs at a time to the patch kernel, larger clouds through two
// nearest-point searches. A pair belongs to one thread and its sums run in the order of its points.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cmath>

#include "common.h"
#include "nearest.h"
#include "pair_gradients.h"

namespace m2ae {
namespace {

constexpr int64_t kFewPairs = 4;     // fewer leave most lanes of the patch kernel idle

bool are_patches(int64_t pairs, int64_t n, int64_t m) { return pairs >= kFewPairs && std::max(n, m) <= kPatch; }

// What the patch kernel found for a block of pairs: column p of (count, kBucket) belongs to pair p.
template <typename T>
struct Found {
  alignas(64) T sqdist[kPatch * kBucket];
  alignas(64) int32_t idx[kPatch * kBucket];
};

// Calls work(first pair, pairs, found from a to b, found from b to a, gradients) for blocks of up to kBucket pairs, in parallel.
template <typename T, typename F>
void for_patches(const Tensor& a, const Tensor& b, const F& work) {
  const int64_t B = a.size(0), n = a.size(1), m = b.size(1);
  const T *pa = a.const_data_ptr<T>(), *pb = b.const_data_ptr<T>();
  at::parallel_for(0, (B + kBucket - 1) / kBucket, grain(2 * n * m), [&](int64_t begin, int64_t end) {
    Found<T> to_b, to_a;
    PairGradients<T> gradients(a, b);
    for (int64_t first = begin * kBucket; first < std::min(B, end * kBucket); first += kBucket) {
      const int64_t pairs = std::min(kBucket, B - first);
      kernels<T>().patches(pa + first * n * 3, pb + first * m * 3, pairs, n, m, to_b.sqdist, to_b.idx, to_a.sqdist, to_a.idx);
      work(first, pairs, to_b, to_a, gradients);
    }
  });
}

// Writes columns of (count, kBucket) to rows of (pairs, count).
template <typename From, typename To>
void lanes_to_rows(const From* lanes, int64_t pairs, int64_t count, To* rows) {
  for (int64_t p = 0; p < pairs; ++p) {
    for (int64_t i = 0; i < count; ++i) rows[p * count + i] = lanes[i * kBucket + p];
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
    scalar_t *forth = d1.mutable_data_ptr<scalar_t>(), *back = d2.mutable_data_ptr<scalar_t>();
    int64_t *first_idx = i1.mutable_data_ptr<int64_t>(), *second_idx = i2.mutable_data_ptr<int64_t>();
    for_patches<scalar_t>(p, q, [&](int64_t first, int64_t pairs, const Found<scalar_t>& to_b, const Found<scalar_t>& to_a, auto&) {
      lanes_to_rows(to_b.sqdist, pairs, n, forth + first * n);
      lanes_to_rows(to_b.idx, pairs, n, first_idx + first * n);
      lanes_to_rows(to_a.sqdist, pairs, m, back + first * m);
      lanes_to_rows(to_a.idx, pairs, m, second_idx + first * m);
    });
  });
  return {d1, d2, i1, i2};
}

void check_indices(const Tensor& idx, int64_t count) {
  const int64_t* values = idx.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < idx.numel(); ++i) {
    TORCH_CHECK_INDEX(values[i] >= 0 && values[i] < count, "chamfer_backward: index ", values[i], " is outside 0..", count - 1);
  }
}

std::tuple<Tensor, Tensor> chamfer_backward_cpu(const Tensor& grad1, const Tensor& grad2, const Tensor& a, const Tensor& b,
                                                const Tensor& i1, const Tensor& i2) {
  const Tensor p = to_compute(a), q = to_compute(b);
  // The derivative of a squared distance is twice the offset.
  const Tensor g1 = grad1.to(p.scalar_type()).mul(2).contiguous(), g2 = grad2.to(p.scalar_type()).mul(2).contiguous();
  const Tensor first = i1.contiguous(), second = i2.contiguous();
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  check_indices(first, m);
  check_indices(second, n);
  Tensor grad_a = at::empty({B, n, 3}, p.options()), grad_b = at::empty({B, m, 3}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_backward", [&] {
    const scalar_t *pa = p.const_data_ptr<scalar_t>(), *pb = q.const_data_ptr<scalar_t>();
    const scalar_t *ga = g1.const_data_ptr<scalar_t>(), *gb = g2.const_data_ptr<scalar_t>();
    const int64_t *ia = first.const_data_ptr<int64_t>(), *ib = second.const_data_ptr<int64_t>();
    scalar_t *to_a = grad_a.mutable_data_ptr<scalar_t>(), *to_b = grad_b.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B, grain(4 * (n + m)), [&](int64_t begin, int64_t end) {
      PairGradients<scalar_t> gradients(p, q);
      for (int64_t c = begin; c < end; ++c) {
        const int64_t x = c * n, y = c * m;
        const Choices<scalar_t, int64_t, 1> forth{ga + x, 0, ia + x}, back{gb + y, 0, ib + y};
        gradients.run(pa + 3 * x, pb + 3 * y, forth, back, to_a + 3 * x, to_b + 3 * y);
      }
    });
  });
  return {grad_a.to(a.scalar_type()), grad_b.to(b.scalar_type())};
}

inline void take_roots(double* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = std::sqrt(values[i]);
}

inline void take_roots(float* values, int64_t count) {
  int64_t i = 0;
#if defined(__SSE2__)
  for (; i + 4 <= count; i += 4) _mm_storeu_ps(values + i, _mm_sqrt_ps(_mm_loadu_ps(values + i)));
#endif
  for (; i < count; ++i) values[i] = std::sqrt(values[i]);
}

// One direction of L pairs: sums the distances (count, L) of each pair and says what every one of them weighs in the gradient. The
// squared distances give way to those weights where they differ.
template <typename T, int L, typename Index>
Choices<T, Index, L> weigh(T* sqdist, const Index* idx, int64_t count, bool root, double (&sums)[L]) {
  double total[L] = {};
  if (!root) {
    for (int64_t i = 0; i < count; ++i) {
      for (int p = 0; p < L; ++p) total[p] += sqdist[i * L + p];
    }
    for (int p = 0; p < L; ++p) sums[p] = total[p] / count;
    return {nullptr, T(2) / T(count), idx};
  }
  const T share = T(0.5) / T(count);
  for (int64_t i = 0; i < count; ++i) {
    T *d = sqdist + i * L, length[L];
    for (int p = 0; p < L; ++p) length[p] = d[p] > T(kSmallestRoot) ? d[p] : T(kSmallestRoot);
    take_roots(length, L);
    for (int p = 0; p < L; ++p) total[p] += length[p], d[p] = d[p] < T(kSmallestRoot) ? T(0) : share / length[p];
  }
  for (int p = 0; p < L; ++p) sums[p] = total[p] / (2 * count);
  return {sqdist, T(0), idx};
}

// Where the results of the loss go; a gradient that is not wanted is a null pointer.
template <typename T>
struct LossOutputs {
  T *loss, *grad_a, *grad_b;
  LossOutputs from(int64_t pair, int64_t at_a, int64_t at_b) const {
    return {loss + pair, grad_a ? grad_a + at_a : nullptr, grad_b ? grad_b + at_b : nullptr};
  }
};

// Writes loss and gradients of L pairs (the first `pairs` of them real) from what both searches found, which is used up.
template <typename T, int L, typename Index>
void write_losses(const T* a, const T* b, T* d1, const Index* i1, T* d2, const Index* i2, int64_t pairs, bool root,
                  PairGradients<T>& gradients, const LossOutputs<T>& out) {
  const int64_t n = gradients.n(), m = gradients.m();
  double forth[L], back[L];
  const auto to_b = weigh<T, L>(d1, i1, n, root, forth);
  const auto to_a = weigh<T, L>(d2, i2, m, root, back);
  for (int64_t p = 0; p < pairs; ++p) {
    out.loss[p] = T(forth[p] + back[p]);
    if (!out.grad_a && !out.grad_b) continue;
    gradients.run(a + p * n * 3, b + p * m * 3, to_b.of(p), to_a.of(p), out.grad_a ? out.grad_a + p * n * 3 : nullptr,
                  out.grad_b ? out.grad_b + p * m * 3 : nullptr);
  }
}

template <typename T>
void patch_losses(const Tensor& a, const Tensor& b, bool root, const LossOutputs<T>& out) {
  const T *pa = a.const_data_ptr<T>(), *pb = b.const_data_ptr<T>();
  for_patches<T>(a, b, [&](int64_t first, int64_t pairs, Found<T>& to_b, Found<T>& to_a, PairGradients<T>& gradients) {
    const int64_t x = first * a.size(1) * 3, y = first * b.size(1) * 3;
    write_losses<T, kBucket>(pa + x, pb + y, to_b.sqdist, to_b.idx, to_a.sqdist, to_a.idx, pairs, root, gradients,
                             out.from(first, x, y));
  });
}

template <typename T>
void cloud_losses(const Tensor& a, const Tensor& b, bool root, const LossOutputs<T>& out) {
  auto [d1, d2, i1, i2] = chamfer_cpu(a, b);
  const int64_t n = a.size(1), m = b.size(1);
  const T *pa = a.const_data_ptr<T>(), *pb = b.const_data_ptr<T>();
  const int64_t *ia = i1.template const_data_ptr<int64_t>(), *ib = i2.template const_data_ptr<int64_t>();
  T *forth = d1.template mutable_data_ptr<T>(), *back = d2.template mutable_data_ptr<T>();
  at::parallel_for(0, a.size(0), grain(4 * (n + m)), [&](int64_t begin, int64_t end) {
    PairGradients<T> gradients(a, b);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t x = c * n, y = c * m;
      write_losses<T, 1>(pa + 3 * x, pb + 3 * y, forth + x, ia + x, back + y, ib + y, 1, root, gradients,
                         out.from(c, 3 * x, 3 * y));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> chamfer_loss_cpu(const Tensor& a, const Tensor& b, bool root, bool want_a, bool want_b) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1), m = q.size(1);
  Tensor loss = at::empty({B}, p.options());
  Tensor grad_a = at::empty({want_a ? B : 0, n, 3}, p.options()), grad_b = at::empty({want_b ? B : 0, m, 3}, p.options());
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::chamfer_loss", [&] {
    const LossOutputs<scalar_t> out{loss.mutable_data_ptr<scalar_t>(), want_a ? grad_a.mutable_data_ptr<scalar_t>() : nullptr,
                                    want_b ? grad_b.mutable_data_ptr<scalar_t>() : nullptr};
    if (are_patches(B, n, m)) {
      patch_losses(p, q, root, out);
    } else {
      cloud_losses(p, q, root, out);
    }
  });
  return {loss, grad_a, grad_b};
}

// Multiplies stored gradients (B, count, 3) by one factor a pair; a batch of zero stays one.
Tensor scaled(const Tensor& stored, const Tensor& factor) {
  const Tensor from = stored.contiguous(), by = factor.to(stored.scalar_type()).contiguous();
  Tensor out = at::empty(from.sizes(), from.options());
  const int64_t length = from.size(1) * 3;
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "m2ae::chamfer_loss_backward", [&] {
    const scalar_t *values = from.const_data_ptr<scalar_t>(), *factors = by.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, from.size(0), grain(length / 4), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t i = p * length; i < (p + 1) * length; ++i) to[i] = factors[p] * values[i];
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> chamfer_loss_backward_cpu(const Tensor& grad, const Tensor& grad_a, const Tensor& grad_b) {
  return {scaled(grad_a, grad), scaled(grad_b, grad)};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("chamfer", chamfer_cpu);
  m.impl("chamfer_backward", chamfer_backward_cpu);
  m.impl("chamfer_loss", chamfer_loss_cpu);
  m.impl("chamfer_loss_backward", chamfer_loss_backward_cpu);
}

}  // namespace m2ae
