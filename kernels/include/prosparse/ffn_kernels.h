// The inner loops of the activation-sparse feed-forward block: one contract, one set per ISA.
//
// All data is float32 and row-major. No alignment is needed anywhere. Outputs are overwritten and may
// not overlap inputs. The caller checks its arguments: these functions have no error path, allocate
// nothing and do not throw.
//
// Order: within one variant the operations behind each output element are the same whatever the
// number of rows, tokens or columns in the call. So splitting a call in any way, or computing tokens
// together or one by one, gives the same bits. Variants differ from each other by rounding.
//
// Error: every result is within gamma(n + 2) * sum |a_i * b_i| of the exact sum of its n products and
// bias, gamma(n) = n * u / (1 - n * u), u = 2^-24 (Higham, "Accuracy and Stability of Numerical
// Algorithms", 2nd ed., section 3.1). NaN and Inf follow IEEE 754.
#ifndef PROSPARSE_FFN_KERNELS_H_
#define PROSPARSE_FFN_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

struct FfnKernels {
  const char* isa;

  // z[t * z_stride + r] = b[r] + sum over c of  w[r * cols + c] * x[t * cols + c]
  //
  //   w  [rows, cols]     b  [rows]     x  [tokens, cols]
  //   z_stride            elements from one token's row of z to the next, >= rows
  //
  // rows, cols and tokens may be 0; cols == 0 gives the bias. Each row of w is read from memory once
  // for all tokens.
  void (*dot_rows)(const float* w, const float* b, size_t rows, size_t cols, const float* x,
                   size_t tokens, float* z, size_t z_stride);

  // u[k] = b[active[k]] + sum over c of  w[active[k] * cols + c] * x[c]      for k in [0, count)
  //
  //   active  [count]     row numbers
  //
  // A row that is not listed is never read, so a NaN in it cannot reach u.
  void (*dot_active)(const float* w, const float* b, size_t cols, const float* x,
                     const int32_t* active, size_t count, float* u);

  // y[j] = b[j] + sum over k of  h[k] * w[active[k] * row_stride + j]        for j in [0, cols)
  //
  //   h, active  [count]
  //   row_stride         elements from one row of w to the next, >= cols
  //
  // The sum runs over k in order. count == 0 copies the bias. A row that is not listed is never read:
  // where a dense product would give NaN (0 * Inf), this gives the sum of the others.
  void (*axpy_active)(const float* w, size_t row_stride, const float* b, const float* h,
                      const int32_t* active, size_t count, size_t cols, float* y);
};

extern const FfnKernels kScalarKernels;  // the reference: double accumulators, no cleverness
#if defined(__x86_64__)
extern const FfnKernels kAvx2Kernels;
extern const FfnKernels kAvx512Kernels;
#endif

}  // namespace prosparse

#endif  // PROSPARSE_FFN_KERNELS_H_
