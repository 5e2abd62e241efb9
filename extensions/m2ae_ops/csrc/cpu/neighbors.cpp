// Neighbour search: queries of all clouds are shared out among the threads.
#include "common.h"
#include "layouts.h"

namespace m2ae {
namespace {

// Costs in nanoseconds for each search: of looking at a point, and of finding the neighbours in a laid-out cloud.
struct Costs {
  double look, search;
};
constexpr Costs kKnn{0.23, 200}, kThreeNn{0.4, 40}, kBall{0.18, 60};

template <typename T>
void knn_laid_out(const Tensor& query, const Tensor& support, int64_t k, Tensor& sqdist, Tensor& idx) {
  T* distances = sqdist.mutable_data_ptr<T>();
  int64_t *indices = idx.mutable_data_ptr<int64_t>(), row = query.size(1) * k;
  for_laid_out<T>(query, support, 1, [&](int, int64_t b, const Slice& slice) {
    kernels<T>().knn_sorted(slice.queries, slice.first, slice.number, slice.support, k, slice.scratch, distances + b * row, indices + b * row);
  });
}

// Copies (B, N, 3) to structure of arrays, (B, 3, padded(N)), NaN in the padding.
template <typename T>
Tensor to_soa(const Tensor& points) {
  const int64_t B = points.size(0), N = points.size(1), P = padded(N);
  Tensor out = at::empty({B, 3, P}, points.options());
  const T* from = points.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, B, grain(N), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T *x = to + b * 3 * P, *y = x + P, *z = y + P;
      for (int64_t i = 0; i < N; ++i) {
        const T* p = from + (b * N + i) * 3;
        x[i] = p[0], y[i] = p[1], z[i] = p[2];
      }
      for (int64_t i = N; i < P; ++i) x[i] = y[i] = z[i] = std::numeric_limits<T>::quiet_NaN();
    }
  });
  return out;
}

// Calls work(cloud, first query, number of queries) for runs of queries of one cloud, in parallel.
template <typename F>
void for_queries(int64_t B, int64_t Q, int64_t cost, const F& work) {
  at::parallel_for(0, B * Q, grain(cost), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t cloud = begin / Q, first = begin % Q, number = std::min(Q - first, end - begin);
      work(cloud, first, number);
      begin += number;
    }
  });
}

template <typename T>
void three_nn_laid_out(const Tensor& query, const Tensor& support, Tensor& sqdist, Tensor& idx) {
  T* distances = sqdist.mutable_data_ptr<T>();
  int64_t *indices = idx.mutable_data_ptr<int64_t>(), row = query.size(1) * 3;
  for_laid_out<T>(query, support, 1, [&](int, int64_t b, const Slice& slice) {
    T* to = distances + b * row;
    int64_t* chosen = indices + b * row;
    if (slice.sparse) {
      kernels<T>().knn_sorted(slice.queries, slice.first, slice.number, slice.support, 3, slice.scratch, to, chosen);
    } else {
      kernels<T>().three_nn_sorted(slice.queries, slice.first, slice.number, slice.support, slice.scratch, to, chosen);
    }
  });
}

std::tuple<Tensor, Tensor> knn_cpu(const Tensor& query, const Tensor& support, int64_t k) {
  const Tensor q = to_compute(query), s = to_compute(support);
  const int64_t B = q.size(0), Q = q.size(1), N = s.size(1);
  Tensor sqdist = at::empty({B, Q, k}, q.options()), idx = at::empty({B, Q, k}, q.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::knn", [&] {
    if (worth_layout(Q, N, kKnn.look, kKnn.search)) return knn_laid_out<scalar_t>(q, s, k, sqdist, idx);
    const Tensor soa = to_soa<scalar_t>(s);
    const scalar_t *from = q.const_data_ptr<scalar_t>(), *cloud_data = soa.const_data_ptr<scalar_t>();
    scalar_t* distances = sqdist.mutable_data_ptr<scalar_t>();
    int64_t* indices = idx.mutable_data_ptr<int64_t>();
    for_queries(B, Q, N / 8 + 100, [&](int64_t b, int64_t first, int64_t number) {
      Scratch scratch(knn_scratch<scalar_t>(N));
      const int64_t at = b * Q + first;
      kernels<scalar_t>().knn(from + at * 3, number, cloud_data + b * 3 * padded(N), N, k, scratch.get(),
                              distances + at * k, indices + at * k);
    });
  });
  return {sqdist, idx};
}

std::tuple<Tensor, Tensor> three_nn_cpu(const Tensor& query, const Tensor& support) {
  const Tensor q = to_compute(query), s = to_compute(support);
  const int64_t B = q.size(0), Q = q.size(1), M = s.size(1);
  Tensor sqdist = at::empty({B, Q, 3}, q.options()), idx = at::empty({B, Q, 3}, q.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::three_nn", [&] {
    if (worth_layout(Q, M, kThreeNn.look, kThreeNn.search)) return three_nn_laid_out<scalar_t>(q, s, sqdist, idx);
    const scalar_t *from = q.const_data_ptr<scalar_t>(), *targets = s.const_data_ptr<scalar_t>();
    scalar_t* distances = sqdist.mutable_data_ptr<scalar_t>();
    int64_t* indices = idx.mutable_data_ptr<int64_t>();
    for_queries(B, Q, M / 4 + 4, [&](int64_t b, int64_t first, int64_t number) {
      const int64_t at = (b * Q + first) * 3;
      kernels<scalar_t>().three_nn(from + at, number, targets + b * M * 3, M, distances + at, indices + at);
    });
  });
  return {sqdist, idx};
}

Tensor ball_query_cpu(const Tensor& query, const Tensor& support, double radius, int64_t k) {
  const Tensor q = to_compute(query), s = to_compute(support);
  const int64_t B = q.size(0), Q = q.size(1), N = s.size(1);
  Tensor idx = at::empty({B, Q, k}, q.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "m2ae::ball_query", [&] {
    const scalar_t limit = scalar_t(radius) * scalar_t(radius);
    int64_t* indices = idx.mutable_data_ptr<int64_t>();
    if (worth_layout(Q, N, kBall.look, kBall.search)) {
      return for_laid_out<scalar_t>(q, s, 1, [&](int, int64_t b, const Slice& slice) {
        kernels<scalar_t>().ball_sorted(slice.queries, slice.first, slice.number, slice.support, limit, k, slice.scratch, indices + b * Q * k);
      });
    }
    const Tensor soa = to_soa<scalar_t>(s);
    const scalar_t *from = q.const_data_ptr<scalar_t>(), *cloud_data = soa.const_data_ptr<scalar_t>();
    for_queries(B, Q, N / 8 + 20, [&](int64_t b, int64_t first, int64_t number) {
      const int64_t at = b * Q + first;
      kernels<scalar_t>().ball_query(from + at * 3, number, cloud_data + b * 3 * padded(N), N, limit, k, indices + at * k);
    });
  });
  return idx;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("knn", knn_cpu);
  m.impl("three_nn", three_nn_cpu);
  m.impl("ball_query", ball_query_cpu);
}

}  // namespace m2ae
