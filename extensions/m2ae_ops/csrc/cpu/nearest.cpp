// Nearest-point search: all queries of a batch are shared out among the threads.
#include "nearest.h"

#include "layouts.h"

namespace m2ae {

namespace {

// Costs in nanoseconds: of looking at a target, and of finding the nearest in a laid-out cloud.
constexpr double kLook = 0.13, kSearch = 25;

template <typename T>
void search(const Slice& slice, T* sqdist, int64_t* idx) {
  if (slice.sparse) {
    kernels<T>().knn_sorted(slice.queries, slice.first, slice.number, slice.support, 1, slice.scratch, sqdist, idx);
  } else {
    kernels<T>().nearest_sorted(slice.queries, slice.first, slice.number, slice.support, slice.scratch, sqdist, idx);
  }
}

}  // namespace

template <typename T>
void nearest_all(const Tensor& from, const Tensor& to, Tensor& sqdist, Tensor& idx) {
  const int64_t B = from.size(0), n = from.size(1), m = to.size(1);
  T* distances = sqdist.mutable_data_ptr<T>();
  int64_t* indices = idx.mutable_data_ptr<int64_t>();
  if (worth_layout(n, m, kLook, kSearch)) {
    for_laid_out<T>(from, to, 1, [&](int, int64_t b, const Slice& slice) {
      search(slice, distances + b * n, indices + b * n);
    });
    return;
  }
  const T *queries = from.const_data_ptr<T>(), *targets = to.const_data_ptr<T>();
  // Slices of a cloud are units of work too, so that few large clouds keep all threads busy.
  const int64_t slice = 256, slices = (n + slice - 1) / slice;
  at::parallel_for(0, B * slices, grain(std::min(n, slice) * m / 4), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / slices, first = unit % slices * slice, number = std::min(slice, n - first);
      const int64_t at = b * n + first;
      kernels<T>().nearest(queries + at * 3, number, targets + b * m * 3, m, distances + at, indices + at);
    }
  });
}

template <typename T>
void nearest_both(const Tensor& a, const Tensor& b, Tensor& d1, Tensor& i1, Tensor& d2, Tensor& i2) {
  const int64_t n = a.size(1), m = b.size(1);
  if (!worth_layout(n, m, kLook, kSearch) || !worth_layout(m, n, kLook, kSearch)) {
    nearest_all<T>(a, b, d1, i1);
    nearest_all<T>(b, a, d2, i2);
    return;
  }
  T* distances[2] = {d1.mutable_data_ptr<T>(), d2.mutable_data_ptr<T>()};
  int64_t* indices[2] = {i1.mutable_data_ptr<int64_t>(), i2.mutable_data_ptr<int64_t>()};
  for_laid_out<T>(a, b, 2, [&](int direction, int64_t cloud, const Slice& slice) {
    const int64_t at = cloud * (direction ? m : n);
    search(slice, distances[direction] + at, indices[direction] + at);
  });
}

template void nearest_all<float>(const Tensor&, const Tensor&, Tensor&, Tensor&);
template void nearest_all<double>(const Tensor&, const Tensor&, Tensor&, Tensor&);
template void nearest_both<float>(const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&, Tensor&);
template void nearest_both<double>(const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&, Tensor&);

}  // namespace m2ae
