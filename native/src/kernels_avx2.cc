// AVX2 with FMA and F16C: Haswell and later, Zen and later.
#include "prosparse/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#define PROSPARSE_TARGET "avx2,fma,f16c"
#define PROSPARSE_ATTRIBUTE __attribute__((target(PROSPARSE_TARGET)))
#include "target_begin.inc"

namespace prosparse {
namespace {

// clang-format off: each needs those above it
#include "simd_avx2.inc"
#include "float_kernels.inc"
#include "tile_kernels.inc"
#include "int_kernels.inc"
// clang-format on

}  // namespace
#include "target_end.inc"

const Kernels kAvx2Kernels = PROSPARSE_TABLE("avx2");

}  // namespace prosparse
#endif
