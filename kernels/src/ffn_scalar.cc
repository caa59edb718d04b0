// The reference: one double accumulator per result, rounded once. Slow on purpose; compiled with
// -ffp-contract=off so that it has the same bits on every machine.
#include "prosparse/ffn_kernels.h"

namespace prosparse {
namespace {

float dot(const float* w, const float* x, size_t cols, float bias) {
  double sum = bias;
  for (size_t c = 0; c < cols; ++c) sum += static_cast<double>(w[c]) * x[c];
  return static_cast<float>(sum);
}

void dot_rows_scalar(const float* w, const float* b, size_t rows, size_t cols, const float* x,
                     size_t tokens, float* z, size_t z_stride) {
  for (size_t r = 0; r < rows; ++r) {
    for (size_t t = 0; t < tokens; ++t) z[t * z_stride + r] = dot(w + r * cols, x + t * cols, cols, b[r]);
  }
}

void dot_active_scalar(const float* w, const float* b, size_t cols, const float* x,
                       const int32_t* active, size_t count, float* u) {
  for (size_t k = 0; k < count; ++k) {
    const size_t row = static_cast<size_t>(active[k]);
    u[k] = dot(w + row * cols, x, cols, b[row]);
  }
}

void axpy_active_scalar(const float* w, size_t row_stride, const float* b, const float* h,
                        const int32_t* active, size_t count, size_t cols, float* y) {
  for (size_t j = 0; j < cols; ++j) {
    double sum = b[j];
    for (size_t k = 0; k < count; ++k) {
      sum += static_cast<double>(h[k]) * w[static_cast<size_t>(active[k]) * row_stride + j];
    }
    y[j] = static_cast<float>(sum);
  }
}

}  // namespace

const FfnKernels kScalarKernels = {"scalar", dot_rows_scalar, dot_active_scalar, axpy_active_scalar};

}  // namespace prosparse
