// AMX tiles for several tokens: Sapphire Rapids and later. All else as in kernels_avx512vnni.cc.
#include "prosparse/kernels.h"

#if defined(PROSPARSE_AMX)
#include <immintrin.h>
#if defined(PROSPARSE_EMULATED_TILES)
#include "../tests/emulated_tiles.h"
#endif

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-bf16"
#define PROSPARSE_SIMD "simd_avx512.inc"
#define PROSPARSE_DOT4
#define PROSPARSE_DOT "dot_bytes.inc"
#define PROSPARSE_MORE "amx_kernels.inc"
#include "variant.inc"

namespace prosparse {
namespace {

// The variant without AMX, except for what is here.
template <Format format>
void add_amx(Kernels& kernels) {
  if constexpr (spec(format).bf16x3_tokens != 0) {
    FormatKernels& of = kernels.of[static_cast<size_t>(format)];
    constexpr size_t kTokens = bf16x3_tokens(format);
    of.bf16x3_tokens = kTokens;
    of.gemm_panels = gemm_panels_amx<format>;
    if constexpr (is_quantized(format)) {
      of.rounded = {rounded_tokens(format), panels_are_left<format>, is_in_bf16_range, to_bf16,     linear_bf16<format>,
                    gate_bf16<format>,      activate_bf16,           up_bf16<format>,  hidden_bf16, down_bf16<format>};
    }
    if constexpr (!is_quantized(format)) of.gather_gemm_bf16x3 = gather_gemm_bf16x3<format>;
  }
}

template <size_t... f>
Kernels with_amx(std::index_sequence<f...>) {
  Kernels kernels = avx512_vnni_kernels();
  kernels.isa = "avx512-amx";
  kernels.up_order = RowOrder::kDot;  // a group's words become a row of a tile
  kernels.to_bf16x3 = to_bf16x3;
  kernels.vnni_transpose = vnni_transpose;
  (add_amx<static_cast<Format>(f)>(kernels), ...);
  return kernels;
}

}  // namespace

const Kernels kAmxKernels = with_amx(std::make_index_sequence<kFormats>());

}  // namespace prosparse
#endif
