// Picks the kernels for the processor at hand, once.
#include <cstdlib>
#include <cstring>

#include "attention.h"
#include "kernels.h"
#include "patches.h"
#include "rows.h"

namespace m2ae {
namespace {

enum Isa { kBase, kAvx2, kAvx512 };

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("popcnt");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? kAvx512 : avx2 ? kAvx2 : kBase;
#else
  return kBase;
#endif
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("M2AE_CPU");
  if (!wanted) return best;
  if (!std::strcmp(wanted, "base")) return kBase;
  if (!std::strcmp(wanted, "avx2") && best >= kAvx2) return kAvx2;
  return best;
}

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

template <typename T>
const Kernels<T>& pick() {
#if defined(__x86_64__)
  if (isa() == kAvx512) return avx512::table<T>();
  if (isa() == kAvx2) return avx2::table<T>();
#endif
  return base::table<T>();
}

template <typename S>
const PatchKernels<S>& pick_patches() {
#if defined(__x86_64__)
  if (isa() == kAvx512) return avx512::patch_table<S>();
  if (isa() == kAvx2) return avx2::patch_table<S>();
#endif
  return base::patch_table<S>();
}

template <typename S>
const AttentionKernels<S>& pick_attention() {
#if defined(__x86_64__)
  if (isa() == kAvx512) return avx512::attention_table<S>();
  if (isa() == kAvx2) return avx2::attention_table<S>();
#endif
  return base::attention_table<S>();
}

template <typename S>
const RowKernels<S>& pick_rows() {
#if defined(__x86_64__)
  if (isa() == kAvx512) return avx512::row_table<S>();
  if (isa() == kAvx2) return avx2::row_table<S>();
#endif
  return base::row_table<S>();
}

}  // namespace

const char* active_isa() {
  const char* names[] = {"base", "avx2", "avx512"};
  return names[isa()];
}

template <> const Kernels<float>& kernels<float>() { return pick<float>(); }
template <> const Kernels<double>& kernels<double>() { return pick<double>(); }

template <> const PatchKernels<float>& patch_kernels<float>() { return pick_patches<float>(); }
template <> const PatchKernels<double>& patch_kernels<double>() { return pick_patches<double>(); }
template <> const PatchKernels<Bf16>& patch_kernels<Bf16>() { return pick_patches<Bf16>(); }

template <> const AttentionKernels<float>& attention_kernels<float>() { return pick_attention<float>(); }
template <> const AttentionKernels<double>& attention_kernels<double>() { return pick_attention<double>(); }
template <> const AttentionKernels<Bf16>& attention_kernels<Bf16>() { return pick_attention<Bf16>(); }

template <> const RowKernels<float>& row_kernels<float>() { return pick_rows<float>(); }
template <> const RowKernels<double>& row_kernels<double>() { return pick_rows<double>(); }
template <> const RowKernels<Bf16>& row_kernels<Bf16>() { return pick_rows<Bf16>(); }

}  // namespace m2ae

// For build.py, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* m2ae_active_isa() { return m2ae::active_isa(); }
