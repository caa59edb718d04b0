// Matrix layouts: as stored in a model file, and as packed in memory.
//
// All matrices of an operator have one format, except that down_proj differs in kMixedFormats. Stored
// (docs/reference/operators.md): row-major. F32, F16 and BF16 as in the checkpoint; I8 one signed byte per weight; I4
// two weights per byte, the even column in the low half, each plus 8, rows padded to whole groups of 32 columns. I8 and
// I4 have one float16 scale per row and group: weight = scale * integer.
//
// Packed, the same for every ISA except for the order of up_proj's rows (Kernels::up_order):
//
// Panels (gate_proj, Linear): 16 rows side by side, so that a lane is a row and no sum runs across lanes. Float
// formats: [cols][16]. I8 and I4, per 64 columns: scales [2][16] as float16, then lines of 64 bytes; lane r of a line
// is 32 bits, two words, with 4 (I8) or 8 (I4) columns of row r. Field n (8 or 4 bits wide) of words 0 and 1 holds
// columns 2n and 2n + 1. Fields are unsigned: integer + 128 or + 8.
//
// Rows (up_proj, down_proj): row-major, so that a row is read or skipped whole. Float formats: as stored, padded to 16
// columns. I8 and I4: lines of 64 bytes, 32 words of 2 or 4 fields, 2 or 4 groups. kDot: each group has its own 16 or
// 8 words, so that one sum per line serves all its groups. kLane: in each 16 groups, group g has lane g (32 bits) of
// every line, so that one sum serves 16 groups; lines of the groups left over are as in kDot. kAxpy: each group has its
// own field, in the order that interleaving two rows' words within 128 bits turns into columns 0 to 31. A row's scales
// follow its lines, so that a scattered row is one place in memory.
#ifndef PROSPARSE_WEIGHTS_H_
#define PROSPARSE_WEIGHTS_H_

#include "prosparse/formats.h"

namespace prosparse {

constexpr size_t kLanes = 16;         // rows of a panel; floats of a vector on every ISA
constexpr size_t kGroupColumns = 32;  // columns that share a scale
constexpr size_t kPanelColumns = 64;  // columns between a quantized panel's scales
constexpr size_t kLineBytes = 64;

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr size_t groups_of(size_t cols) { return (cols + kGroupColumns - 1) / kGroupColumns; }
// Columns of a stored row, padding included.
constexpr size_t stored_columns(Format f, size_t cols) {
  return spec(f).bits < 8 ? round_up(cols, kGroupColumns) : cols;
}
constexpr size_t stored_row_bytes(Format f, size_t cols) { return stored_columns(f, cols) * spec(f).bits / 8; }
// Bytes of kPanelColumns columns of a quantized panel, scales first.
constexpr size_t panel_step_bytes(Format f) {
  return kPanelColumns / kGroupColumns * kLanes * 2 + kPanelColumns * kLanes * element_bits(f) / 8;
}

// A matrix in a model file. `scales`, float16, is null for float formats. Neither need be aligned.
struct Matrix {
  Format format;
  const void* data;
  const void* scales;
  size_t rows, cols;
};

struct Panels {
  Format format;
  const uint8_t* data;
  const float* bias;  // [rows, rounded up to 16]
  size_t rows, cols;
  size_t panel_bytes;
  const uint8_t* out_of_range;  // [count()], 16-bit formats: whether a weight of the panel exceeds bf16_limit
  size_t prefetch_distance;     // bytes ahead of what gemm_panels of one token reads; 0: no prefetching
  bool side_by_side = false;    // whether gemm_panels of one token reads several panels at once
  size_t count() const { return (rows + kLanes - 1) / kLanes; }
};

enum class RowOrder { kDot, kLane, kAxpy };

struct Rows {
  Format format;
  const uint8_t* data;
  const float* bias;  // kDot, kLane: [rows]; kAxpy: [cols, rounded up to padded_cols]
  size_t rows, cols;
  size_t padded_cols;  // multiple of 16; quantized: of a line's columns
  size_t row_bytes;
  size_t scales_at;             // quantized only: bytes from a row's beginning to its scales, one per group
  size_t lane_groups;           // a multiple of 16: the first so many groups have lanes, see kLane
  const uint8_t* out_of_range;  // [rows], 16-bit formats but for kAxpy: see Panels

  const uint8_t* row(size_t of) const { return data + of * row_bytes; }
  const uint16_t* scales(size_t of) const { return reinterpret_cast<const uint16_t*>(row(of) + scales_at); }
};

// Lines that 16 groups take in kLane order, and lanes of a line that a group takes in kDot order.
constexpr size_t group_lanes(Format format) { return kGroupColumns / 2 / fields(format); }

// Column within its line of field `field` of word `word` (0 to 31); not for kLane.
constexpr size_t word_column(RowOrder order, Format format, size_t word, size_t field) {
  const size_t words = kGroupColumns / fields(format);  // per group, kDot
  if (order == RowOrder::kDot) return word / words * kGroupColumns + field * words + word % words;
  const size_t lane = word / 8, place = word % 8;
  return field * kGroupColumns + (place < 4 ? 4 * lane + place : 16 + 4 * lane + (place - 4));
}

}  // namespace prosparse

#endif  // PROSPARSE_WEIGHTS_H_
