// Work on laid-out clouds (buckets_impl.h), shared out among the threads.
#pragma once

#include "common.h"

namespace m2ae {

// A run of sorted queries of one cloud and what it takes to search for them.
struct Slice {
  const void *queries, *support;  // layouts
  int64_t first, number;
  void* scratch;
  bool sparse;  // far fewer queries than points to search: neighbouring queries have little in common
};

// Whether sorting the clouds pays, given in nanoseconds what it costs to look at one point without and to search with a layout.
inline bool worth_layout(int64_t queries, int64_t count, double look, double search) {
  constexpr double kSort = 9;
  return double(queries) * (look * double(count) - search) > kSort * double(queries + count) && count >= 256;
}

// Lays out every pair of a batch of contiguous clouds (B, n, 3) and (B, m, 3) and calls search(direction, cloud, slice), in
// parallel: direction 0 looks for the first cloud's points in the second, direction 1 (if there are two) the other way round.
template <typename T, typename Search>
void for_laid_out(const Tensor& first, const Tensor& second, int directions, const Search& search) {
  constexpr int64_t kSlice = 256;
  const int64_t B = first.size(0), n = first.size(1), m = second.size(1);
  const T *a = first.const_data_ptr<T>(), *b = second.const_data_ptr<T>();
  const size_t a_bytes = layout_bytes<T>(n), b_bytes = layout_bytes<T>(m);
  const size_t scratch_bytes = std::max(search_scratch<T>(std::max(n, m)), lay_out_scratch<T>(std::max(n, m)));
  const int64_t slices = (n + kSlice - 1) / kSlice, units = slices + (directions == 2 ? (m + kSlice - 1) / kSlice : 0);
  const auto lay_out = [&](int64_t cloud, void* scratch, char* memory) {
    kernels<T>().lay_out(a + cloud * n * 3, n, b + cloud * m * 3, m, scratch, memory, memory + a_bytes);
  };
  const auto run = [&](int64_t cloud, int64_t unit, void* scratch, char* memory) {
    const bool back = unit >= slices;
    const int64_t from = (back ? unit - slices : unit) * kSlice, count = back ? m : n;
    const void *here = memory + (back ? a_bytes : 0), *there = memory + (back ? 0 : a_bytes);
    search(int(back), cloud, Slice{here, there, from, std::min(kSlice, count - from), scratch, count < (n + m - count) / 2});
  };
  if (B % at::get_num_threads() == 0 || B >= 8 * at::get_num_threads()) {
    // A cloud belongs to one thread, which lays out the next one in the memory of the last.
    at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(scratch_bytes), memory(a_bytes + b_bytes);
      for (int64_t cloud = begin; cloud < end; ++cloud) {
        lay_out(cloud, scratch.get(), static_cast<char*>(memory.get()));
        for (int64_t unit = 0; unit < units; ++unit) run(cloud, unit, scratch.get(), static_cast<char*>(memory.get()));
      }
    });
    return;
  }
  const Scratch memory(B * (a_bytes + b_bytes));
  const auto of_cloud = [&](int64_t cloud) { return static_cast<char*>(memory.get()) + cloud * (a_bytes + b_bytes); };
  at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    for (int64_t cloud = begin; cloud < end; ++cloud) lay_out(cloud, scratch.get(), of_cloud(cloud));
  });
  at::parallel_for(0, B * units, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    for (int64_t unit = begin; unit < end; ++unit) run(unit / units, unit % units, scratch.get(), of_cloud(unit / units));
  });
}

}  // namespace m2ae
