#include "token_batch.h"

#include <algorithm>
#include <cmath>

#include "gate_gemm.h"
#include "quantize_activations.h"
#include "silu.h"

namespace prosparse {
namespace {

bool needs_scalar(const TokenBatch& batch, const Rows& w, size_t token) {
  return is_quantized(w.format) && batch.scratch.needs_fallback[token].load(std::memory_order_relaxed);
}

const FormatKernels& kernels_for(const TokenBatch& batch, const Rows& w, size_t token) {
  return (needs_scalar(batch, w, token) ? kScalarKernels : batch.kernels).of[static_cast<size_t>(w.format)];
}

}  // namespace

void TokenBatch::compute_gate(size_t index) const {
  const Range panels = piece(ffn.gate.count(), pieces, index, 2);
  gate_gemm(kernels, ffn.gate, panels.begin, panels.end, x, bytes, scratch, z, z_stride);
  if (ffn.activation != Activation::kSilu) return;
  const size_t first = panels.begin * kLanes, last = panels.end * kLanes;
  for (size_t t = 0; t < x.count; ++t) silu(z + t * z_stride + first, last - first);
}

void TokenBatch::list_active(size_t token) const {
  int32_t* indices = active + token * list_stride;
  float *values = a + token * list_stride, *all = z + token * z_stride;
  size_t count = ffn.d_ff;
  if (scratch.is_nan[token]) {
    scratch.counts[token] = 0;
    return;
  }
  const bool by_magnitude = ffn.activation == Activation::kSilu;
  if (ffn.dense) {
    for (size_t k = 0; k < count; ++k) {
      indices[k] = static_cast<int32_t>(k);
      values[k] = (by_magnitude ? std::fabs(all[k]) : all[k]) <= ffn.threshold ? 0.0f : all[k];
    }
  } else if (by_magnitude) {
    count = compact_magnitude(all, ffn.d_ff, ffn.threshold, indices, values);
  } else {
    count = kernels.compact(all, ffn.d_ff, ffn.threshold, indices, values);
  }
  if (ffn.activation == Activation::kRelu2) {
    for (size_t k = 0; k < count; ++k) values[k] *= values[k];
  }
  scratch.counts[token] = count;
  if (!ffn.gated) mark_fallback(token, values, count);
}

void TokenBatch::mark_fallback(size_t token, const float* values, size_t count) const {
  if (!is_quantized(ffn.down.format) || is_in_range(values, count)) return;
  scratch.needs_fallback[token].store(true, std::memory_order_relaxed);
}

void TokenBatch::compute_up(size_t token, Range list, size_t col, size_t cols, int times) const {
  const size_t at = token * list_stride + list.begin, count = list.end - list.begin;
  if (count == 0) return;
  if (bytes != nullptr && !needs_scalar(*this, ffn.up, token)) {
    DotTokens one = *bytes;
    one.count = 1;
    one.rows += token * one.row_bytes;
    const DotList all = {active + at, h + at, count, times};
    one.kernels->up(ffn.up, one, nullptr, &all);
  } else {
    kernels_for(*this, ffn.up, token).gather_dot(ffn.up, x, token, active + at, count, col, cols, times, h + at);
  }
  if (col + cols < ffn.d_model) return;
  if (ffn.activation == Activation::kDrelu) {
    for (size_t k = at; k < at + count; ++k) h[k] = h[k] <= 0.0f ? 0.0f : h[k];
  }
  for (size_t k = at; k < at + count; ++k) h[k] *= a[k];
}

void TokenBatch::start_down(Range columns) const {
  for (size_t t = 0; t < x.count; ++t) {
    std::copy(ffn.down.bias + columns.begin, ffn.down.bias + columns.end, y + t * y_stride + columns.begin);
  }
}

void TokenBatch::add_down(size_t token, Range list, Range columns, size_t piece_index, int times) const {
  const size_t at = token * list_stride + list.begin;
  kernels_for(*this, ffn.down, token)
      .scatter_axpy(ffn.down, active + at, (ffn.gated ? h : a) + at, list.end - list.begin, columns.begin,
                    columns.end - columns.begin, times, y + token * y_stride + columns.begin,
                    work + piece_index * work_bytes);
}

Range TokenBatch::list_range(size_t token, size_t first, size_t last) const {
  const int32_t *begin = active + token * list_stride, *end = begin + scratch.counts[token];
  const int32_t* from = std::lower_bound(begin, end, static_cast<int32_t>(first));
  const int32_t* to = std::lower_bound(from, end, static_cast<int32_t>(std::min(last, ffn.d_ff)));
  return {static_cast<size_t>(from - begin), static_cast<size_t>(to - begin)};
}

}  // namespace prosparse
