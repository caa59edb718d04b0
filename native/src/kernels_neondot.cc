// NEON with the dot product instructions: ARMv8.2 and later, Apple silicon, Graviton 2 and later.
#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
#define PROSPARSE_TARGET "dotprod"
#else
#define PROSPARSE_TARGET "arch=armv8.2-a+dotprod"
#endif
#define PROSPARSE_SIMD "simd_neon.inc"
#define PROSPARSE_DOT4
#define PROSPARSE_DOT "dot_bytes.inc"
#include "variant.inc"

const prosparse::Kernels& prosparse::neon_dot_kernels() {
  static const Kernels kernels = integer_table("neon-dotprod", kNeonKernels);
  return kernels;
}
#endif
