// The operators on any number of tokens, in terms of one ISA's kernels.
#ifndef PROSPARSE_FFN_H_
#define PROSPARSE_FFN_H_

#include "parallel.h"
#include "prosparse/kernels.h"
#include "scratch.h"

namespace prosparse {

enum class Activation { kRelu, kRelu2, kDrelu, kSilu };  // FATReLU is kRelu with a threshold

struct Ffn {
  bool gated;
  Panels gate;  // gate_proj, or up_proj where there is no gate: always computed whole
  Rows up;      // gated only, of gate's format
  Rows down;    // of gate's format, or of kMixedFormats
  size_t d_model, d_ff;
  Activation activation;
  float threshold;
  bool dense;  // the dense baseline: list every neuron, with an activation of 0 where it is inactive
};

// y[t, :] = b_down + sum over active k of  a_k * v_k * w_down[k, :]            [tokens, d_model]
//
//   z_k = b_gate[k] + w_gate[k, :] . x[t, :]      (w_up, b_up where there is no gate)
//   k is active unless z_k <= threshold, so a NaN is active and stays visible
//   a_k = z_k, or z_k * z_k for kRelu2
//   kSilu: a_k = silu(z_k) = z_k / (1 + exp(-z_k)), and k is active unless |a_k| <= threshold
//   v_k = b_up[k] + w_up[k, :] . x[t, :]; for kDrelu 0 if that is <= 0; 1 where there is no gate
//
// Rows of w_up and w_down of inactive neurons are not read: a NaN or Inf there has no effect, while the dense form
// gives 0 * Inf = NaN. y may not overlap x. The same bits for any number of threads. Tokens are independent, NaN and
// Inf included, except that with a gate, in a float format and with more than 4 tokens in a call, one token may change
// how the others are rounded. May throw std::bad_alloc, leaving y partly written.
void run_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y, const Parallel& parallel,
             Scratch& scratch);

// As run_ffn, with x at accuracy level 4 by DotKernels: for tokens too few to share rows.
void run_ffn_by_bytes(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
                      const Parallel& parallel, Scratch& scratch);

// y[t, :] = bias + x[t, :] . w^T                                               [tokens, w.rows]
// x is [tokens, cols]; cols is w.cols, or less within the last group of a quantized matrix.
void run_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_FFN_H_
