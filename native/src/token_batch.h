// One pass of run_ffn over up to kBatchTokens tokens: its memory, and the steps of the FFN.
#ifndef PROSPARSE_TOKEN_BATCH_H_
#define PROSPARSE_TOKEN_BATCH_H_

#include "ffn.h"

namespace prosparse {

struct Tiles;

struct TokenBatch {
  const Kernels& kernels;
  const Ffn& ffn;
  const Parallel& parallel;
  Scratch& scratch;
  size_t pieces;  // of gate_proj, and the most of any other step
  Tokens x;
  float* y;
  size_t y_stride, z_stride, list_stride, work_bytes;
  float *z, *a, *h;
  int32_t* active;
  uint8_t* work;
  int prefetches;                       // of rows that no token has read, see FormatKernels::gather_dot
  const Tiles* tiles;                   // null: one token, or a quantized format
  const DotTokens* bytes;               // x for DotKernels, or null
  const uint8_t* transposed = nullptr;  // x in bfloat16 parts as gather_gemm_bf16x3 reads them, or null

  // Piece `index` of z = gate_proj(x), with SiLU applied.
  void compute_gate(size_t index) const;
  // One token's active neurons and their activations.
  void list_active(size_t token) const;
  // Sets needs_fallback if values that a quantized down_proj reads are out of range.
  void mark_fallback(size_t token, const float* values, size_t count) const;
  // h = a * v for a range of one token's list; v has been summed over the columns before `col`. times: how
  // often to prefetch these rows.
  void compute_up(size_t token, Range list, size_t col, size_t cols, int times) const;
  // Results begin as the bias.
  void start_down(Range columns) const;
  // Adds a range of one token's list to some columns of its result.
  void add_down(size_t token, Range list, Range columns, size_t piece_index, int times) const;
  // The range of a token's list within neurons [first, last).
  Range list_range(size_t token, size_t first, size_t last) const;
};

}  // namespace prosparse

#endif  // PROSPARSE_TOKEN_BATCH_H_
