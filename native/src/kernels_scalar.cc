// The reference: one double accumulator per result, rounded once, activations as they are. Slow on purpose;
// compiled with -ffp-contract=off so that it has the same bits on every machine.
#include "pack.h"
#include "prosparse/kernels.h"

namespace prosparse {
namespace {

void stream(const Panels& w, size_t first, size_t last, const Tokens& x, float* z, size_t z_stride) {
  for (size_t r = first * kLanes; r < last * kLanes && r < w.rows; ++r) {
    for (size_t t = 0; t < x.count; ++t) {
      double sum = w.bias[r];
      for (size_t c = 0; c < w.cols; ++c) sum += panel_weight(w, r, c) * x.x[t * x.stride + c];
      z[t * z_stride + r] = static_cast<float>(sum);
    }
  }
}

void dot(const Rows& w, const Tokens& x, size_t token, const int32_t* active, size_t count, size_t col, size_t cols,
         bool, float* u) {
  for (size_t k = 0; k < count; ++k) {
    const size_t row = static_cast<size_t>(active[k]);
    double sum = col == 0 ? w.bias[row] : u[k];
    for (size_t c = col; c < col + cols && c < w.cols; ++c) {
      sum += row_weight(w, RowOrder::kDot, row, c) * x.x[token * x.stride + c];
    }
    u[k] = static_cast<float>(sum);
  }
}

void axpy(const Rows& w, const int32_t* active, const float* h, size_t count, size_t col, size_t cols, bool, float* y,
          void*) {
  for (size_t j = 0; j < cols && col + j < w.cols; ++j) {
    double sum = y[j];
    for (size_t k = 0; k < count; ++k) {
      sum += h[k] * row_weight(w, RowOrder::kAxpy, static_cast<size_t>(active[k]), col + j);
    }
    y[j] = static_cast<float>(sum);
  }
}

void tile(const Rows& w, const float* x, size_t x_stride, size_t tokens, const int32_t* rows, size_t count, size_t col,
          size_t cols, const Ahead&, float* v, size_t v_stride) {
  for (size_t k = 0; k < count; ++k) {
    for (size_t t = 0; t < tokens; ++t) {
      double sum = v[k * v_stride + t];
      for (size_t c = 0; c < cols && col + c < w.cols; ++c) {
        sum += row_weight(w, RowOrder::kDot, static_cast<size_t>(rows[k]), col + c) * x[t * x_stride + c];
      }
      v[k * v_stride + t] = static_cast<float>(sum);
    }
  }
}

void add_lists(const Rows& w, size_t, const int32_t*, size_t, size_t col, size_t cols, const Ahead&, const Part* parts,
               size_t tokens, float* y, size_t y_stride, float*) {
  for (size_t t = 0; t < tokens; ++t)
    axpy(w, parts[t].active, parts[t].h, parts[t].count, col, cols, false, y + t * y_stride, nullptr);
}

// Nothing here reads what is rounded.
void quantize(const float*, size_t, Format, int16_t*, int16_t*, float*, int32_t*, int32_t*) {}

#include "compact.inc"

constexpr FormatKernels kAny = {0, 0, stream, dot, axpy, tile, add_lists, nullptr};

}  // namespace

const Kernels kScalarKernels = {"scalar", 1,      1, false, quantize, compact, {kAny, kAny, kAny, kAny, kAny},
                                nullptr,  nullptr};

}  // namespace prosparse
