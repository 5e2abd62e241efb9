// Nearest-point search: all queries of a batch are shared out among the threads.
#include "nearest.h"

namespace m2ae {

template <typename T>
void nearest_all(const Tensor& from, const Tensor& to, Tensor& sqdist, Tensor& idx) {
  const int64_t B = from.size(0), n = from.size(1), m = to.size(1);
  const T *queries = from.const_data_ptr<T>(), *targets = to.const_data_ptr<T>();
  T* distances = sqdist.mutable_data_ptr<T>();
  int64_t* indices = idx.mutable_data_ptr<int64_t>();
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

template void nearest_all<float>(const Tensor&, const Tensor&, Tensor&, Tensor&);
template void nearest_all<double>(const Tensor&, const Tensor&, Tensor&, Tensor&);

}  // namespace m2ae
