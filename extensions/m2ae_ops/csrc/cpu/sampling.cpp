// Farthest point sampling: clouds are shared out among the threads.
#include <algorithm>
#include <c10/util/string_view.h>
#include <numeric>
#include <vector>

#include "common.h"

namespace m2ae {
namespace {

// Place of every point in the order in which the published CUDA kernel prefers points of equal distance: smallest
// bit-reversed (index mod T), then smallest index, with T = min(512, 2^floor(log2 count)). Empty if the order is the index.
std::vector<int32_t> ranks_of(c10::string_view tie_break, int64_t count) {
  std::vector<int32_t> rank;
  if (tie_break != "pointnet2") return rank;
  int bits = 0;
  while (bits < 9 && (int64_t(2) << bits) <= count) ++bits;
  const int64_t threads = int64_t(1) << bits;
  rank.resize(count);
  int32_t next = 0;
  for (int64_t turned = 0; turned < threads; ++turned) {
    int64_t slot = 0;
    for (int b = 0; b < bits; ++b) slot |= ((turned >> b) & 1) << (bits - 1 - b);
    for (int64_t i = slot; i < count; i += threads) rank[i] = next++;
  }
  return rank;
}

// Samples all clouds of `p` (B, N, 3) into `out` (B, samples).
template <typename T>
void sample(const Tensor& p, int64_t samples, const FpsRules& rules, int64_t* out, uint8_t* doubtful) {
  const int64_t B = p.size(0), N = p.size(1);
  const T* data = p.const_data_ptr<T>();
  const int64_t sets = (B + kFpsTogether - 1) / kFpsTogether;
  at::parallel_for(0, sets, grain(kFpsTogether * (N * 8 + samples * 60)), [&](int64_t begin, int64_t end) {
    Scratch scratch(fps_scratch<T>(N));
    const int64_t first = kFpsTogether * begin, last = std::min(kFpsTogether * end, B);
    kernels<T>().fps(data + first * N * 3, last - first, N, samples, rules, scratch.get(), out + first * samples,
                     doubtful ? doubtful + first : nullptr);
  });
}

Tensor fps_cpu(const Tensor& points, int64_t samples, bool skip_near_origin, c10::string_view tie_break) {
  const Tensor p = to_compute(points);
  Tensor out = at::empty({p.size(0), samples}, p.options().dtype(at::kLong));
  const std::vector<int32_t> rank = ranks_of(tie_break, p.size(1));
  const FpsRules rules{skip_near_origin, rank.empty() ? nullptr : rank.data(), 0};
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::fps", [&] {
    sample<scalar_t>(p, samples, rules, out.mutable_data_ptr<int64_t>(), nullptr);
  });
  return out;
}

// Samples the points of one cloud, then the samples of those, and so on; the first level, `levels[0]`, is there already.
template <typename T>
void sample_one_by_one(const T* cloud, const std::vector<int64_t*>& levels, at::IntArrayRef samples, bool skip_near_origin,
                       const std::vector<std::vector<int32_t>>& ranks) {
  std::vector<T> members, chosen;
  const T* from = cloud;
  for (size_t level = 1; level < samples.size(); ++level) {
    const int64_t count = samples[level - 1];
    chosen.resize(3 * count);
    for (int64_t i = 0; i < count; ++i) std::copy_n(from + 3 * levels[level - 1][i], 3, chosen.data() + 3 * i);
    members.swap(chosen);
    from = members.data();
    const FpsRules rules{skip_near_origin, ranks[level].empty() ? nullptr : ranks[level].data(), 0};
    Scratch scratch(fps_scratch<T>(count));
    kernels<T>().fps(from, 1, count, samples[level], rules, scratch.get(), levels[level], nullptr);
  }
}

// The samples of a sample are its first ones, unless several points were farthest at the same time (a smaller cloud may
// prefer another of them), points are repeated, or more samples are wanted than there are. Such clouds are sampled level by
// level.
std::vector<Tensor> fps_nested_cpu(const Tensor& points, at::IntArrayRef samples, bool skip_near_origin,
                                   c10::string_view tie_break) {
  const Tensor p = to_compute(points);
  const int64_t B = p.size(0), N = p.size(1);
  std::vector<Tensor> out;
  std::vector<std::vector<int32_t>> ranks;
  for (size_t level = 0; level < samples.size(); ++level) {
    out.push_back(at::empty({B, samples[level]}, p.options().dtype(at::kLong)));
    ranks.push_back(ranks_of(tie_break, level ? samples[level - 1] : N));
  }
  const bool shrinking = std::is_sorted(samples.rbegin(), samples.rend());
  std::vector<uint8_t> doubtful(B, !shrinking);
  const FpsRules rules{skip_near_origin, ranks[0].empty() ? nullptr : ranks[0].data(), samples.size() > 1 ? samples[1] : 0};
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::fps_nested", [&] {
    sample<scalar_t>(p, samples[0], rules, out[0].mutable_data_ptr<int64_t>(), doubtful.data());
    at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        std::vector<int64_t*> levels;
        for (size_t l = 0; l < samples.size(); ++l) levels.push_back(out[l].mutable_data_ptr<int64_t>() + b * samples[l]);
        if (doubtful[b]) {
          sample_one_by_one(p.const_data_ptr<scalar_t>() + b * N * 3, levels, samples, skip_near_origin, ranks);
        } else {
          for (size_t l = 1; l < samples.size(); ++l) std::iota(levels[l], levels[l] + samples[l], 0);
        }
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CPU, m) {
  m.impl("fps", fps_cpu);
  m.impl("fps_nested", fps_nested_cpu);
}

}  // namespace m2ae
