// The reference: one double accumulator per result, rounded once, activations as they are. Slow on purpose;
// compiled with -ffp-contract=off so that it has the same bits on every machine.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <utility>

#include "packed_weight.h"
#include "prosparse/kernels.h"

namespace prosparse {
namespace {

void gemm_panels(const Panels& w, size_t first, size_t last, const Tokens& x, float* z, size_t z_stride) {
  for (size_t r = first * kLanes; r < last * kLanes && r < w.rows; ++r) {
    for (size_t t = 0; t < x.count; ++t) {
      double sum = w.bias[r];
      for (size_t c = 0; c < w.cols; ++c) sum += panel_weight(w, r, c) * x.x[t * x.stride + c];
      z[t * z_stride + r] = static_cast<float>(sum);
    }
  }
}

void gather_dot(const Rows& w, const Tokens& x, size_t token, const int32_t* active, size_t count, size_t col,
                size_t cols, int, float* u) {
  for (size_t k = 0; k < count; ++k) {
    const size_t row = static_cast<size_t>(active[k]);
    double sum = col == 0 ? w.bias[row] : u[k];
    for (size_t c = col; c < col + cols && c < w.cols; ++c) {
      sum += row_weight(w, RowOrder::kDot, row, c) * x.x[token * x.stride + c];
    }
    u[k] = static_cast<float>(sum);
  }
}

void scatter_axpy(const Rows& w, const int32_t* active, const float* h, size_t count, size_t col, size_t cols, int,
                  float* y, void*) {
  for (size_t j = 0; j < cols && col + j < w.cols; ++j) {
    double sum = y[j];
    for (size_t k = 0; k < count; ++k) {
      sum += h[k] * row_weight(w, RowOrder::kAxpy, static_cast<size_t>(active[k]), col + j);
    }
    y[j] = static_cast<float>(sum);
  }
}

void gather_gemm(const Rows& w, const float* x, size_t x_stride, size_t tokens, const int32_t* rows, size_t count,
                 size_t col, size_t cols, const PrefetchRows&, float* v, size_t v_stride) {
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

void scatter_gemm(const Rows& w, size_t, const int32_t*, size_t, size_t col, size_t cols, const PrefetchRows&,
                  const ScatterList* lists, size_t tokens, float* y, size_t y_stride, float*) {
  for (size_t t = 0; t < tokens; ++t)
    scatter_axpy(w, lists[t].active, lists[t].h, lists[t].count, col, cols, 0, y + t * y_stride, nullptr);
}

// No kernel here reads rounded activations.
void quantize(const float*, size_t, Format, size_t, int16_t*, int16_t*, float*, int32_t*, int32_t*) {}

#include "attention_scalar.inc"
#include "compact.inc"

template <size_t... f>
constexpr Kernels scalar_table(std::index_sequence<f...>) {
  constexpr FormatKernels kAny = {0,       0,  gemm_panels, gather_dot, scatter_axpy, gather_gemm, scatter_gemm,
                                  nullptr, {}, {},          {}};
  return {"scalar", 1,      1, false, RowOrder::kLane, quantize, compact, kAttention, {(static_cast<void>(f), kAny)...},
          nullptr,  nullptr};
}

}  // namespace

constexpr Kernels kScalarKernels = scalar_table(std::make_index_sequence<kFormats>());

}  // namespace prosparse
