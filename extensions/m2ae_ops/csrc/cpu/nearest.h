// Nearest-point search over whole batches.
#pragma once

#include "common.h"

namespace m2ae {

// Finds the nearest point of `to` (B, m, 3) for every point of `from` (B, n, 3): squared distance and index (B, n), the lowest
// index first. Both inputs are contiguous and of the kernel type T (float or double).
template <typename T>
void nearest_all(const Tensor& from, const Tensor& to, Tensor& sqdist, Tensor& idx);

}  // namespace m2ae
