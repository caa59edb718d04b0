// One pass of run_ffn over up to kBlock tokens: its memory, and the steps that one token and several share.
#ifndef PROSPARSE_BLOCK_H_
#define PROSPARSE_BLOCK_H_

#include <algorithm>
#include <cmath>

#include "ffn.h"

namespace prosparse {

struct Block;

struct List {  // of one token in a tile
  const int32_t* active;
  const float* a;
  size_t count;
};

// What several tokens in a float format work with, by tile of kTile neurons.
struct Tiles {
  size_t count = 0;           // tiles
  uint8_t* seen = nullptr;    // [d_ff] tokens for which a neuron is active
  int32_t* starts = nullptr;  // [tokens][count + 1]: where in a token's list a tile begins
  int32_t* active = nullptr;  // all tokens' lists by tile, then by token: down_proj reads them one after the other;
                              // Block's h likewise
  int32_t *used = nullptr, *used_counts = nullptr;      // [d_ff], [count]: by tile, neurons active for some token
  int32_t *common = nullptr, *common_counts = nullptr;  // the same: for so many that up_proj computes all of them
  float* x = nullptr;                                   // by kUpColumns columns, then by token
  size_t v_stride = 0;
  float *v = nullptr, *rare_v = nullptr;  // [kPieces][kTile][v_stride] common ones, [kPieces][tokens][kTile] others
  int32_t* rare = nullptr;
  float* copies = nullptr;  // [kPieces][kTile * kMostTileColumns]

  List list(const Block& block, size_t token, size_t tile) const;

  Tiles() = default;
  Tiles(const Ffn& ffn, size_t tokens, Scratch& scratch);  // may throw std::bad_alloc
};

struct Block {
  const Kernels& kernels;
  const Ffn& ffn;
  const Parallel& parallel;
  Scratch& scratch;
  Tokens x;
  float* y;
  size_t y_stride, z_stride, list_stride, work_bytes;
  float *z, *a, *h;
  int32_t* active;
  uint8_t* work;
  bool prefetch;
  const Tiles* tiles;               // null: one token, or a quantized format
  const uint8_t* turned = nullptr;  // x in parts as tile_split reads them, or null

  const FormatKernels& kernels_for(const Rows& w, size_t token) const {
    const bool is_odd = is_quantized(w.format) && scratch.is_odd[token].load(std::memory_order_relaxed);
    return (is_odd ? kScalarKernels : kernels).of[static_cast<size_t>(w.format)];
  }

  void gate(size_t index) {
    scratch.ran_on[index] = std::this_thread::get_id();
    const Range panels = piece(ffn.gate.count(), kPieces, index, 2);
    stream_all(kernels, ffn.gate, panels.begin, panels.end, x, scratch, z, z_stride);
    if (ffn.activation != Activation::kSilu) return;
    const size_t first = panels.begin * kLanes, last = panels.end * kLanes;
    for (size_t t = 0; t < x.count; ++t) silu(z + t * z_stride + first, last - first);
  }

  // The list of active neurons of one token, and their activations.
  void list(size_t token) {
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
    if (!ffn.gated) mark_odd(token, values, count);
  }

  void mark_odd(size_t token, const float* values, size_t count) {
    if (!is_quantized(ffn.down.format)) return;
    bool tame = true;
    for (size_t k = 0; k < count; ++k) tame &= std::fabs(values[k]) < kLargest;
    if (!tame) scratch.is_odd[token].store(true, std::memory_order_relaxed);
  }

  // h = a * v for part of one token's list; v has been summed over columns before `col`.
  void up(size_t token, Range list, size_t col, size_t cols) {
    const size_t at = token * list_stride + list.begin, count = list.end - list.begin;
    if (count == 0) return;
    kernels_for(ffn.up, token).dot(ffn.up, x, token, active + at, count, col, cols, prefetch, h + at);
    if (col + cols < ffn.d_model) return;
    if (ffn.activation == Activation::kDrelu) {
      for (size_t k = at; k < at + count; ++k) h[k] = h[k] <= 0.0f ? 0.0f : h[k];
    }
    for (size_t k = at; k < at + count; ++k) h[k] *= a[k];
  }

  // Adds part of one token's list to some columns of its result.
  void down(size_t token, Range list, Range columns, size_t index) {
    const size_t at = token * list_stride + list.begin;
    kernels_for(ffn.down, token)
        .axpy(ffn.down, active + at, (ffn.gated ? h : a) + at, list.end - list.begin, columns.begin,
              columns.end - columns.begin, prefetch, y + token * y_stride + columns.begin, work + index * work_bytes);
  }

  // The part of a token's list that lies in rows [first, last).
  Range part(size_t token, size_t first, size_t last) const {
    const int32_t *begin = active + token * list_stride, *end = begin + scratch.counts[token];
    const int32_t* from = std::lower_bound(begin, end, static_cast<int32_t>(first));
    const int32_t* to = std::lower_bound(from, end, static_cast<int32_t>(std::min(last, ffn.d_ff)));
    return {static_cast<size_t>(from - begin), static_cast<size_t>(to - begin)};
  }

  // Results begin as the bias.
  void start(Range columns) const {
    for (size_t t = 0; t < x.count; ++t) {
      std::copy(ffn.down.bias + columns.begin, ffn.down.bias + columns.end, y + t * y_stride + columns.begin);
    }
  }
};

// up_proj and down_proj of several tokens in a float format, after their lists.
void run_tiles(Block& block);

}  // namespace prosparse

#endif  // PROSPARSE_BLOCK_H_
