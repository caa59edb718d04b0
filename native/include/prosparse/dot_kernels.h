// Many tokens, and accuracy level 4 (docs/reference/operators.md), by dot products of bytes or words.
#ifndef PROSPARSE_DOT_KERNELS_H_
#define PROSPARSE_DOT_KERNELS_H_

#include "prosparse/weights.h"

namespace prosparse {

constexpr size_t kMaxDotTokens = 128;  // of DotTokens

struct DotKernels;

// Tokens with each group of 32 columns as signed integers, x = scale * q. `group` tokens are
// interleaved.
struct DotTokens {
  const DotKernels* kernels;    // those that read it
  size_t count, group, groups;  // groups: of columns
  // Of each `group` tokens, as they meet the parts of a panel's lines: [groups][8][tokens] of four columns in bytes, or
  // of eight bytes where a column has two, the low ones first; or [groups][16][tokens] of columns 2i, 2i + 1 in words.
  const uint8_t* q;
  const float* scale;    // [groups][tokens]
  const int32_t* start;  // [groups][tokens]: what the dot products begin with, for the weights' offset
  const uint8_t* rows;   // [count][row_bytes]: each token by itself, as to_bytes leaves them; FFNs only
  size_t row_bytes;
  const uint8_t* row_q;  // as q, but columns as they meet a line of Rows; see DotUse
};

// Memory that is read soon.
struct MemoryRange {
  const uint8_t* at;
  size_t bytes;
};

// One token's active neurons among some rows.
struct DotList {
  const int32_t* slots;  // which of the rows
  float* values;
  size_t count;
  int prefetches;  // of upcoming rows, see FormatKernels::gather_dot
};

// Of one token: one of a tile's rows, and down_proj's input for it in float32; or two rows, and that for them in
// bfloat16, the first one low.
struct DotEntry {
  uint16_t rows[2];
  uint32_t h;
};

// Neurons whose rows of down_proj stay in a cache while all tokens use them.
struct DotTile {
  const int32_t* rows;
  size_t count;             // at most DotKernels::tile_rows
  const DotEntry* entries;  // of token t: [ends[t - 1], ends[t])
  const uint32_t* ends;     // [tokens]
};

// down_proj's input.
struct DotHidden {
  size_t tokens, count;
  const DotTile* tiles;
};

// Tokens from which an FFN takes all of DotKernels.
struct BatchTokens {
  size_t on_zen5, elsewhere;
};

// Kernels of one accuracy level. Null where others serve for it.
//
// Error: activations are rounded to bytes, by up to half of max|x| / 127 over the group, or to words, by up to half of
// max|x| / kSteps, and multiplied by integers, so the bound of float formats and that times |w| for each
// multiplication. `down` with pairs as RoundedKernels, else as float formats.
struct DotKernels {
  size_t tokens;       // from which they are used; 0: never
  BatchTokens batch;   // below this, an FFN uses only to_bytes, multiply and up
  size_t group;        // the most tokens that are interleaved
  size_t group_bytes;  // of DotTokens::q, by token and group of columns
  size_t (*row_bytes)(size_t cols);
  // `count` tokens, interleaved, and rows and row_q unless they are null: zeros for those that are null. All magnitudes
  // are below 1e30. lane_groups: of Rows.
  void (*to_bytes)(const float* const* x, size_t count, size_t cols, size_t lane_groups, uint8_t* q, float* scale,
                   int32_t* start, uint8_t* rows, uint8_t* row_q);
  // As gemm_panels, but z begins at row 16 * first. then: what to prefetch meanwhile, with more than
  // direct_tokens tokens.
  void (*multiply)(const Panels& w, size_t first, size_t last, const DotTokens& x, const MemoryRange& then, float* z,
                   size_t z_stride);
  size_t direct_tokens;
  // values[i] = bias + sum over c of w[rows[slots[i]]][c] * x[c], for every token's list. Without `rows`, slots are
  // rows. No other rows are read.
  void (*up)(const Rows& w, const DotTokens& x, const int32_t* rows, const DotList* lists);
  // v[t * v_stride + r] = bias + sum over c of w[rows[r]][c] * x[c], for all tokens and `count` rows, a multiple of 16.
  // Null at level 0: tokens would change how others are rounded. For 16 rows that on average at least shared_percent of
  // the tokens use, it takes less time than `up`.
  void (*up_panels)(const Rows& w, const DotTokens& x, const int32_t* rows, size_t count, float* v, size_t v_stride);
  size_t shared_percent;
  bool has_pairs;  // in DotEntry
  size_t tile_rows;
  // y[t * y_stride + j] = bias[j] + sum over h's neurons, for columns [first, last), in units of kPadColumns. sums:
  // work space, [tokens][kPadColumns].
  void (*down)(const Rows& w, const DotHidden& h, size_t first, size_t last, float* sums, float* y, size_t y_stride);
};

}  // namespace prosparse

#endif  // PROSPARSE_DOT_KERNELS_H_
