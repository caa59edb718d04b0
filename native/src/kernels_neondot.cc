// NEON with the dot product instructions: ARMv8.2 and later, Apple silicon, Graviton 2 and later.
#include "prosparse/kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#define PROSPARSE_TARGET "dotprod"
#else
#define PROSPARSE_TARGET "arch=armv8.2-a+dotprod"
#endif
#define PROSPARSE_ATTRIBUTE __attribute__((target(PROSPARSE_TARGET)))
#define PROSPARSE_DOT4
#include "target_begin.inc"

namespace prosparse {
namespace {

// clang-format off: each needs those above it
#include "simd_neon.inc"
#include "float_kernels.inc"
#include "tile_kernels.inc"
#include "int_kernels.inc"
// clang-format on

}  // namespace
#include "target_end.inc"

const Kernels kNeonDotKernels = PROSPARSE_TABLE("neon-dotprod");

}  // namespace prosparse
#endif
