// NEON of ARMv8-A: every 64-bit ARM.
#include "prosparse/kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>
#include <type_traits>
#include <utility>

#define PROSPARSE_ATTRIBUTE

namespace prosparse {
namespace {

// clang-format off: each needs those above it
#include "simd_neon.inc"
#include "float_kernels.inc"
#include "tile_kernels.inc"
#include "int_kernels.inc"
// clang-format on

}  // namespace

const Kernels kNeonKernels = PROSPARSE_TABLE("neon");

}  // namespace prosparse
#endif
