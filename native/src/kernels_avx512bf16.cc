// AVX-512 with VNNI and BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later. All else as in kernels_avx512vnni.cc.
#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"
#define PROSPARSE_SIMD "simd_avx512.inc"
#define PROSPARSE_DOT4
#define PROSPARSE_DOT "dot_bytes.inc"
#define PROSPARSE_MORE "bf16_kernels.inc"
#include "variant.inc"

namespace prosparse {
namespace {

template <Format format>
void add_bf16(Kernels& kernels) {
  if constexpr (is_quantized(format)) {
    DotKernels& dot = kernels.of[static_cast<size_t>(format)].dot;
    dot.has_pairs = true;
    dot.tile_rows = Bf16Down::kRows;
    dot.down = down_dot<Bf16Down, format>;
  }
}

template <size_t... f>
Kernels with_bf16(std::index_sequence<f...>) {
  Kernels kernels = avx512_vnni_kernels();
  kernels.isa = "avx512-bf16";
  (add_bf16<static_cast<Format>(f)>(kernels), ...);
  return kernels;
}

}  // namespace

const Kernels kAvx512Bf16Kernels = with_bf16(std::make_index_sequence<kFormats>());

}  // namespace prosparse
#endif
