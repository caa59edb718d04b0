// AVX2 with FMA and F16C: Haswell and later, Zen and later.
#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_TARGET "avx2,fma,f16c"
#define PROSPARSE_SIMD "simd_avx2.inc"
#define PROSPARSE_DOT "dot_words.inc"
#include "variant.inc"

constexpr prosparse::Kernels prosparse::kAvx2Kernels = kernel_table("avx2");
#endif
