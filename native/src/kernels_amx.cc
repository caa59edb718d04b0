// AMX tiles for several tokens: Sapphire Rapids and later. All else as in kernels_avx512vnni.cc.
//
// A tile multiplies 16 x 32 by 32 x 16 bfloat16, exactly, and adds up in float32. Both sides become sums of bfloat16
// parts (high, middle, low: 8 bits each) which are multiplied with each other, but for pairs too small to count.
#include "prosparse/kernels.h"

#if defined(PROSPARSE_AMX)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-bf16"
#define PROSPARSE_ATTRIBUTE __attribute__((target(PROSPARSE_TARGET)))
#define PROSPARSE_DOT4
#include "target_begin.inc"

namespace prosparse {
namespace {

// clang-format off: each needs those above it
#include "simd_avx512.inc"
#include "float_kernels.inc"
#include "int_kernels.inc"
#include "amx_kernels.inc"
// clang-format on

}  // namespace
#include "target_end.inc"

// From here on for any processor: this runs when the library is loaded.
namespace {

// The variant without tiles, but for what is here. That one is a constant: it is there before this runs.
template <Format format>
FormatKernels with_tiles() {
  FormatKernels kernels = kAvx512VnniKernels.of[static_cast<size_t>(format)];
  constexpr size_t kFirst = split_tokens(format);
  kernels.split_tokens = kFirst;
  kernels.stream = stream_tiles<format>;
  if constexpr (!is_quantized(format)) kernels.tile_split = tile_split<format>;
  return kernels;
}

Kernels all() {
  Kernels kernels = kAvx512VnniKernels;
  kernels.isa = "avx512-amx";
  kernels.quantize = quantize;  // the same code again
  kernels.compact = compact;
  kernels.split = split_x;
  kernels.turn = turn_tile;
  kernels.of[static_cast<size_t>(Format::kF16)] = with_tiles<Format::kF16>();
  kernels.of[static_cast<size_t>(Format::kBF16)] = with_tiles<Format::kBF16>();
  kernels.of[static_cast<size_t>(Format::kI8)] = with_tiles<Format::kI8>();
  kernels.of[static_cast<size_t>(Format::kI4)] = with_tiles<Format::kI4>();
  return kernels;
}

}  // namespace

const Kernels kAmxKernels = all();

}  // namespace prosparse
#endif
