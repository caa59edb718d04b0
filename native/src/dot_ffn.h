// The operators at accuracy level 4 by DotKernels.
#ifndef PROSPARSE_DOT_FFN_H_
#define PROSPARSE_DOT_FFN_H_

#include "ffn.h"

namespace prosparse {

// As run_rounded_ffn, where DotKernels has its kernels and takes so many tokens.
void run_dot_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
                 const Parallel& parallel, Scratch& scratch);

// As run_linear, where DotKernels takes so many tokens.
void run_dot_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                    const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_DOT_FFN_H_
