// AVX-512 with VNNI: Cascade Lake and later, Zen 4 and later.
#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
#define PROSPARSE_SIMD "simd_avx512.inc"
#define PROSPARSE_DOT4
#define PROSPARSE_DOT "dot_bytes.inc"
#include "variant.inc"

const prosparse::Kernels& prosparse::avx512_vnni_kernels() {
  static const Kernels kernels = integer_table("avx512-vnni", kAvx512Kernels);
  return kernels;
}
#endif
