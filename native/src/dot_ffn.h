// The operators by DotKernels, at accuracy level 4 or 0, for up to kBatchTokens tokens. Those out of range are marked
// in scratch.needs_fallback, and their results are left undefined.
#ifndef PROSPARSE_DOT_FFN_H_
#define PROSPARSE_DOT_FFN_H_

#include "ffn.h"

namespace prosparse {

// y: [count][d_model].
void run_dot_batch(const Kernels& kernels, DotLevel level, const Ffn& ffn, const float* x, size_t count, float* y,
                   const Parallel& parallel, Scratch& scratch);

// z[t * z_stride + r]; z has room for whole panels.
void multiply_dot_batch(const Kernels& kernels, DotLevel level, const Panels& w, const float* x, size_t count,
                        size_t cols, float* z, size_t z_stride, const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_DOT_FFN_H_
