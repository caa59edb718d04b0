// NEON of ARMv8-A: every 64-bit ARM.
#if defined(__aarch64__)
#include <arm_neon.h>

#define PROSPARSE_SIMD "simd_neon.inc"
#include "variant.inc"

constexpr prosparse::Kernels prosparse::kNeonKernels = kernel_table("neon");
#endif
