// Nearest-point search over whole batches.
#pragma once

#include "common.h"

namespace m2ae {

// Finds the nearest point of `to` (B, m, 3) for every point of `from` (B, n, 3): squared distance and index (B, n), the lowest
// index first. Both inputs are contiguous and of the kernel type T (float or double).
template <typename T>
void nearest_all(const Tensor& from, const Tensor& to, Tensor& sqdist, Tensor& idx);

// The same both ways: of `a` (B, n, 3) in `b` to d1 and i1 (B, n), of `b` (B, m, 3) in `a` to d2 and i2 (B, m). Large clouds
// are sorted once for both.
template <typename T>
void nearest_both(const Tensor& a, const Tensor& b, Tensor& d1, Tensor& i1, Tensor& d2, Tensor& i2);

}  // namespace m2ae
