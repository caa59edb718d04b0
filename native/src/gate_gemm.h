// gate_proj, or a Linear: Kernels::gemm_panels for tokens of any magnitude.
#ifndef PROSPARSE_GATE_GEMM_H_
#define PROSPARSE_GATE_GEMM_H_

#include "scratch.h"

namespace prosparse {

// z for panels [first, last) and all tokens. Tokens that need the fallback are computed by the scalar kernels
// (quantized formats) or without AMX (float formats); in quantized formats those with a NaN are left out. bytes: the
// tokens for DotKernels, which are then read instead, or null.
void gate_gemm(const Kernels& kernels, const Panels& w, size_t first, size_t last, const Tokens& x,
               const DotTokens* bytes, const Scratch& scratch, float* z, size_t z_stride);

}  // namespace prosparse

#endif  // PROSPARSE_GATE_GEMM_H_
