// NEON with int8 matrix multiplication (i8mm): ARMv8.6 and later, Graviton 3 and later, Apple M2 and later.
#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
#define PROSPARSE_TARGET "dotprod,i8mm"
#else
#define PROSPARSE_TARGET "arch=armv8.2-a+dotprod+i8mm"
#endif
#define PROSPARSE_SIMD "simd_neon.inc"
#define PROSPARSE_DOT4
#define PROSPARSE_MMLA
#define PROSPARSE_DOT "dot_bytes.inc"
#include "variant.inc"

const prosparse::Kernels& prosparse::neon_i8mm_kernels() {
  static const Kernels kernels = integer_table("neon-i8mm", kNeonKernels);
  return kernels;
}
#endif
