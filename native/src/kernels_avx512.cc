// AVX-512 F, BW, DQ, VL: Skylake-X and later.
#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define PROSPARSE_SIMD "simd_avx512.inc"
#define PROSPARSE_DOT "dot_words.inc"
#include "variant.inc"

constexpr prosparse::Kernels prosparse::kAvx512Kernels = kernel_table("avx512");
#endif
