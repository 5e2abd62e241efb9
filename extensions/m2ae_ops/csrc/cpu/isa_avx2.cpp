// Kernels for x86 with AVX2; build.py adds the compiler flags of this file.
#define M2AE_ISA avx2
#define M2AE_BYTES 32
#include "kernels_impl.h"
