// AVX2 with byte dot products: Alder Lake and later without AVX-512, Sierra Forest.
#include "prosparse/kernels.h"

#if defined(PROSPARSE_AVXVNNI)
#include <immintrin.h>

#if defined(PROSPARSE_AVXVNNI_AS_AVX512)  // the same instruction as AVX-512 encodes it, for tests
#define PROSPARSE_TARGET "avx2,fma,f16c,avx512f,avx512vl,avx512vnni"
#define PROSPARSE_DOT4 _mm256_dpbusd_epi32
#else
#define PROSPARSE_TARGET "avx2,fma,f16c,avxvnni"
#define PROSPARSE_DOT4 _mm256_dpbusd_avx_epi32
#endif
#define PROSPARSE_SIMD "simd_avx2.inc"
#define PROSPARSE_DOT "dot_bytes.inc"
#include "variant.inc"

const prosparse::Kernels& prosparse::avx_vnni_kernels() {
  static const Kernels kernels = integer_table("avx-vnni", kAvx2Kernels);
  return kernels;
}
#endif
