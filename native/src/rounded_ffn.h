// The operators at accuracy level 4: by RoundedKernels or DotKernels where a variant has them for so many tokens, else
// as at level 0. RoundedKernels leave few tokens with few active neurons to DotKernels.
#ifndef PROSPARSE_ROUNDED_FFN_H_
#define PROSPARSE_ROUNDED_FFN_H_

#include "ffn.h"

namespace prosparse {

// As run_ffn, for quantized formats. Which neurons the other tokens of a call use may change how a token is rounded.
void run_rounded_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
                     const Parallel& parallel, Scratch& scratch);

// As run_linear.
void run_rounded_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                        const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_ROUNDED_FFN_H_
