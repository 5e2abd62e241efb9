// Sums over the rows of a matrix, in double precision; see kernels.h for the rule about headers.
#pragma once

#include "kernels.h"

namespace m2ae::M2AE_ISA {
namespace {

// Adds to out[0..channels) the sums of y over all rows, and to the next `channels` those of y * (x - shift). A strip of
// channels is summed in registers over a block of rows that stays in the cache.
template <typename T>
void row_sums(const T* x, const T* y, const double* shift, int64_t rows, int64_t channels, double* out) {
  constexpr int64_t kStrip = 32, kBlock = 128;
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t last = first + kBlock < rows ? first + kBlock : rows;
    for (int64_t c = 0; c < channels; c += kStrip) {
      const int64_t width = c + kStrip < channels ? kStrip : channels - c;
      double plain[kStrip], product[kStrip], origin[kStrip];
      for (int64_t i = 0; i < width; ++i) plain[i] = out[c + i], product[i] = out[channels + c + i], origin[i] = shift[c + i];
      if (width == kStrip) {
        for (int64_t r = first; r < last; ++r) {
          const T *xs = x + r * channels + c, *ys = y + r * channels + c;
          for (int64_t i = 0; i < kStrip; ++i) {
            const double value = double(ys[i]);
            plain[i] += value;
            product[i] += value * (double(xs[i]) - origin[i]);
          }
        }
      } else {
        for (int64_t r = first; r < last; ++r) {
          const T *xs = x + r * channels + c, *ys = y + r * channels + c;
          for (int64_t i = 0; i < width; ++i) {
            const double value = double(ys[i]);
            plain[i] += value;
            product[i] += value * (double(xs[i]) - origin[i]);
          }
        }
      }
      for (int64_t i = 0; i < width; ++i) out[c + i] = plain[i], out[channels + c + i] = product[i];
    }
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
