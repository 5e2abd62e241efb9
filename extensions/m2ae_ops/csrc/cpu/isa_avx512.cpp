// Kernels for x86 with AVX-512 (F, DQ, BW, VL); build.py adds the compiler flags of this file.
#define M2AE_ISA avx512
#define M2AE_BYTES 64
#include "kernels_impl.h"
