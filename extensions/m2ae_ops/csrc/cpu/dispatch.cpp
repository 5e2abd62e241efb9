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

template <typename Table>
const Table& pick() {
#if defined(__x86_64__)
  if (isa() == kAvx512) return avx512::table<Table>();
  if (isa() == kAvx2) return avx2::table<Table>();
#endif
  return base::table<Table>();
}

}  // namespace

const char* active_isa() {
  const char* names[] = {"base", "avx2", "avx512"};
  return names[isa()];
}

#define M2AE_PICK(Table) \
  template <> const Table& of_processor<Table>() { return pick<Table>(); }

M2AE_PICK(Kernels<float>)
M2AE_PICK(Kernels<double>)
M2AE_PICK(PatchKernels<float>)
M2AE_PICK(PatchKernels<double>)
M2AE_PICK(PatchKernels<Bf16>)
M2AE_PICK(AttentionKernels<float>)
M2AE_PICK(AttentionKernels<double>)
M2AE_PICK(AttentionKernels<Bf16>)
M2AE_PICK(RowKernels<float>)
M2AE_PICK(RowKernels<double>)
M2AE_PICK(RowKernels<Bf16>)

}  // namespace m2ae

// For build.py, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* m2ae_active_isa() { return m2ae::active_isa(); }
