// How the operators' matrices are stored: canonically in a model file, and repacked in memory.
//
// All matrices of one operator have one format; only I4I8 has down_proj in I8 and the others in I4. Canonical
// (docs/reference/operators.md): rows one after another, F32, F16 and BF16 as in the checkpoint; I8 one signed byte per
// weight; I4 two weights per byte, the even column in the low half, each plus 8, rows padded to whole blocks of 32.
// I8 and I4 have one float16 scale per row and block of 32 columns: weight = scale * integer.
//
// Repacked, the same for every ISA:
//
// Panels (gate_proj, dense products): 16 rows side by side, so that a lane is a row and no sum runs
// across lanes. Float formats: [cols][16]. I8 and I4, per 64 columns: scales [2][16] as float16, then
// lines of 64 bytes; lane r of a line is 32 bits, two words, with 4 (I8) or 8 (I4) columns of row r. Field
// n (8 or 4 bits wide) of words 0 and 1 holds columns 2n and 2n + 1. Fields are unsigned: integer + 128 or + 8.
//
// Rows (up_proj, down_proj): one row after another, read or left out whole. Float formats: as they
// are, padded to 16 columns. I8 and I4: lines of 64 bytes, 32 words of 2 or 4 fields, 2 or 4 blocks of columns.
// kDot: each block has 16 or 8 words of its own, so that one sum per line serves all its blocks. kAxpy: each block
// has a field of its own, in the order that interleaving two rows' words within 128 bits turns into columns 0 to 31.
// Scales lie apart: [rows][blocks].
#ifndef PROSPARSE_WEIGHTS_H_
#define PROSPARSE_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

enum class Format { kF32, kF16, kBF16, kI8, kI4 };
constexpr size_t kFormats = 5;
constexpr size_t kLanes = 16;         // rows of a panel; floats of a vector on every ISA
constexpr size_t kQuantBlock = 32;    // columns that share a scale
constexpr size_t kPanelColumns = 64;  // columns between a quantized panel's scales
constexpr size_t kLineBytes = 64;

constexpr bool is_quantized(Format f) { return f == Format::kI8 || f == Format::kI4; }
constexpr size_t element_bits(Format f) {
  return f == Format::kF32 ? 32 : f == Format::kI8 ? 8 : f == Format::kI4 ? 4 : 16;
}
constexpr size_t fields(Format f) { return 16 / element_bits(f); }  // per 16-bit word, quantized only
constexpr int field_offset(Format f) { return f == Format::kI8 ? 128 : 8; }
constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
// Bytes of kPanelColumns columns of a quantized panel, scales first.
constexpr size_t panel_part_bytes(Format f) {
  return kPanelColumns / kQuantBlock * kLanes * 2 + kPanelColumns * kLanes * element_bits(f) / 8;
}
constexpr size_t blocks_of(size_t cols) { return (cols + kQuantBlock - 1) / kQuantBlock; }

// A matrix in a model file. `scales`, float16, is null for float formats. Either may begin at any byte.
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
  const uint8_t* wild;  // [count()], 16-bit formats: whether a weight of the panel is too large for tiles or no number
  size_t ahead;         // bytes beyond what one token's stream reads that it asks the memory for; 0: none
  size_t count() const { return (rows + kLanes - 1) / kLanes; }
};

enum class RowOrder { kDot, kAxpy };

struct Rows {
  Format format;
  const uint8_t* data;
  const uint16_t* scales;  // [rows][scale_stride], quantized only
  const float* bias;       // kDot: [rows]; kAxpy: [cols, rounded up to padded_cols]
  size_t rows, cols;
  size_t padded_cols;  // multiple of 16; quantized: of a line's columns
  size_t row_bytes;
  size_t scale_stride;  // blocks of padded_cols
  const uint8_t* wild;  // [rows], 16-bit formats in kDot order: as of Panels
};

// Column within its line of field `field` of word `word` (0 to 31).
constexpr size_t word_column(RowOrder order, Format format, size_t word, size_t field) {
  const size_t words = kQuantBlock / fields(format);  // of one block, kDot
  if (order == RowOrder::kDot) return word / words * kQuantBlock + field * words + word % words;
  const size_t lane = word / 8, place = word % 8;
  return field * kQuantBlock + (place < 4 ? 4 * lane + place : 16 + 4 * lane + (place - 4));
}

}  // namespace prosparse

#endif  // PROSPARSE_WEIGHTS_H_
