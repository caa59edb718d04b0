// AVX-512 F, BW, DQ, VL: Skylake-X and later.
#include "prosparse/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define PROSPARSE_ATTRIBUTE __attribute__((target(PROSPARSE_TARGET)))
#include "target_begin.inc"

namespace prosparse {
namespace {

// clang-format off: each needs those above it
#include "simd_avx512.inc"
#include "float_kernels.inc"
#include "tile_kernels.inc"
#include "int_kernels.inc"
// clang-format on

}  // namespace
#include "target_end.inc"

const Kernels kAvx512Kernels = PROSPARSE_TABLE("avx512");

}  // namespace prosparse
#endif
