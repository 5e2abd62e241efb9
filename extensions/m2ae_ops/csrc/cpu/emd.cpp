// Earth mover's distance: clouds are shared out among the threads. reference/emd.py defines every step.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

namespace m2ae {
namespace {

template <typename T>
T squared(const T* p, const T* q) {
  const T dx = p[0] - q[0], dy = p[1] - q[1], dz = p[2] - q[2];
  return (dx * dx + dy * dy) + dz * dz;
}

// Working memory of one thread.
template <typename T>
struct EmdWork {
  explicit EmdWork(int64_t n) : a(3 * n), b(3 * n), sqdist(n), idx(n), scratch(emd_scratch<T>(n)) {}
  std::vector<T> a, b, sqdist;
  std::vector<int64_t> idx;
  Scratch scratch;
};

// The box around all points that are not infinitely far.
template <typename T>
struct Box {
  static constexpr T kFar = sizeof(T) == 4 ? T(0x1p56) : T(0x1p480);
  T low[3] = {kFar, kFar, kFar}, high[3] = {-kFar, -kFar, -kFar};

  // Copies the points, NaN in place of those with a coordinate beyond the limit, and grows around the others.
  void take(const T* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; ++i, from += 3, to += 3) {
      const bool near = std::abs(from[0]) <= kFar && std::abs(from[1]) <= kFar && std::abs(from[2]) <= kFar;
      for (int c = 0; c < 3; ++c) {
        to[c] = near ? from[c] : std::numeric_limits<T>::quiet_NaN();
        if (near) low[c] = std::min(low[c], from[c]), high[c] = std::max(high[c], from[c]);
      }
    }
  }

  T diagonal() const { return low[0] > high[0] ? T(0) : squared(high, low); }
};

template <typename T>
void match(const T* a, const T* b, int64_t n, double eps, int64_t bids, EmdWork<T>& work, int64_t* assignment) {
  Box<T> box;
  box.take(a, n, work.a.data());
  box.take(b, n, work.b.data());
  EmdRules<T> rules;
  const T diagonal = box.diagonal();
  rules.far = 2 * diagonal;
  const T least = std::max(diagonal * (sizeof(T) == 4 ? T(0x1p-17) : T(0x1p-46)), std::numeric_limits<T>::min());
  rules.last_eps = std::max(T(eps), least);
  rules.bids = bids;
  // Nobody needs to pay more than about the largest of all nearest distances, both ways; a quarter of it is the first step.
  T reach = 0;
  const auto grow = [&] {
    for (const T d : work.sqdist) reach = std::max(reach, std::min(d, rules.far));
  };
  kernels<T>().nearest(work.b.data(), n, work.a.data(), n, work.sqdist.data(), work.idx.data());
  grow();
  kernels<T>().nearest(work.a.data(), n, work.b.data(), n, work.sqdist.data(), assignment);
  grow();
  rules.first_eps = reach * T(0.25);
  kernels<T>().emd(work.a.data(), work.b.data(), n, rules, work.scratch.get(), assignment);
}

std::tuple<Tensor, Tensor> emd_cpu(const Tensor& a, const Tensor& b, double eps, int64_t iters, bool bijective) {
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = p.size(1);
  const int64_t bids = bijective ? std::numeric_limits<int64_t>::max() : iters * n;
  Tensor cost = at::empty({B, n}, p.options()), assignment = at::empty({B, n}, p.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::emd", [&] {
    const scalar_t *from = p.const_data_ptr<scalar_t>(), *to = q.const_data_ptr<scalar_t>();
    scalar_t* costs = cost.mutable_data_ptr<scalar_t>();
    int64_t* partners = assignment.mutable_data_ptr<int64_t>();
    at::parallel_for(0, B, grain(n * (n + 200)), [&](int64_t begin, int64_t end) {
      EmdWork<scalar_t> work(n);
      for (int64_t c = begin; c < end; ++c) {
        const scalar_t *x = from + 3 * c * n, *y = to + 3 * c * n;
        match(x, y, n, eps, bids, work, partners + c * n);
        for (int64_t i = 0; i < n; ++i) {
          const scalar_t d = squared(x + 3 * i, y + 3 * partners[c * n + i]);
          costs[c * n + i] = std::isnan(d) ? std::numeric_limits<scalar_t>::infinity() : d;
        }
      }
    });
  });
  return {cost, assignment};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) { m.impl("emd", emd_cpu); }

}  // namespace m2ae
