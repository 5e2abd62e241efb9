// Kernels for any processor: 16-byte vectors (SSE2 and NEON); build.py adds the compiler flags of this file.
#define M2AE_ISA base
#define M2AE_BYTES 16
#include "kernels_impl.h"
