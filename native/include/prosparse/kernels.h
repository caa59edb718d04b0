// The inner loops of the operators: one contract, one set per ISA, one table entry per weight format.
//
// Layouts are those of weights.h. The caller checks its arguments: these functions have no error path,
// allocate nothing and do not throw. Outputs may not overlap inputs.
//
// Order: the operations behind each output element are the same wherever a call is split by rows,
// by list entries or by columns, so any number of threads gives the same bits. Variants differ by
// rounding; so may different numbers of tokens in one call of `stream`.
//
// Error, for n products a_i * b_i: float formats within gamma(n + 2) * sum |a_i * b_i| of the exact sum,
// gamma(n) = n * u / (1 - n * u), u = 2^-24 (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
// ed., section 3.1). Quantized formats multiply integers exactly and round the activations to 16 bits:
// `stream` and `dot` per block of 32 columns, to multiples of max|x| / kSteps over that block; `axpy` per
// chunk of kAxpyChunk list entries and column block, to multiples of max|h * scale| / kSteps. Half such a
// step, times |integer|, is added to the bound for each product. The scalar variant does not round them, nor does
// `stream` of so many tokens that it computes in float32. By tiles (Kernels::split) a product is up to five, and no
// activation is rounded, but the weights of quantized formats are, to 2^-16 of each: gamma(3 * n + 4), and the same
// half step. Tiles flush what is below 2^-126 to 0: n * 2^-98 is added; and what is within 2^-8 of the largest float
// may be infinite.
#ifndef PROSPARSE_KERNELS_H_
#define PROSPARSE_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "prosparse/weights.h"

namespace prosparse {

constexpr size_t kAxpyChunk = 128;
constexpr float kSteps = 32639.0f;   // 127 * 257: a rounded activation is 256 times a signed byte plus another
constexpr size_t kPadColumns = 128;  // activations and results are padded to this

// Activations of some tokens, [tokens, cols]. Beyond cols everything is 0.
struct Tokens {
  const float* x;              // [tokens][stride]
  size_t count, cols, stride;  // stride: cols rounded up, at least to 16
  // Quantized formats only: x = scale * q, rounded to nearest.
  const int16_t* q;       // [tokens][stride]
  const int16_t* q_dot;   // [tokens][stride], per line of Rows by field, then by word
  const float* scale;     // [tokens][stride / 32]
  const int32_t* starts;  // [tokens][stride / 2], 16 per line: -field_offset times what q_dot's pairs add up to
  const int32_t* sums;    // [tokens][stride / 32]: -field_offset times the sum of a block
  // The same, for groups of tokens side by side as `stream` reads them; see Kernels::float_group and int_group.
  const float* grouped_x;
  const int32_t* grouped_q;
  // For tiles; see Kernels::split. Null: not so many tokens, or no tiles. Else grouped_x and grouped_q are not set, and
  // tokens that cannot be split are zeros here: `stream` leaves them to stream_all.
  const uint8_t* split;
  float* split_sums;  // beside it, for `stream` to work in: for each panel of the matrix split_sums_floats(count)
};

// One of the tokens, alone: for float formats, and for the scalar variant.
inline Tokens one_of(const Tokens& x, size_t token) {
  Tokens one = x;
  one.count = 1;
  one.grouped_x = one.x = x.x + token * x.stride;
  one.split = nullptr;
  return one;
}

// Of `count` tokens, `most` at a time, how many go side by side: groups of about one size, as a small one reads as
// much.
constexpr size_t group_size(size_t count, size_t most) {
  const size_t groups = (count + most - 1) / most;
  return groups == 0 ? 1 : (count + groups - 1) / groups;
}

constexpr size_t kTile = 60;  // rows that several tokens share while a cache holds them
constexpr size_t kMostTileColumns = 128;
constexpr size_t kTokenTile = 4;

// Rows that will be read next, to be fetched meanwhile: all of them from column `col` on.
struct Ahead {
  const int32_t* rows;
  size_t count, col;
};

// What one token adds up: h[i] times row active[i], for i in [0, count).
struct Part {
  const int32_t* active;
  const float* h;
  size_t count;
};

struct FormatKernels {
  size_t split_tokens;  // from which `stream` reads split x; 0: never
  size_t wide_tokens;  // from which `stream` of a quantized format makes weights float32 and reads grouped_x; it rounds
                       // no x then

  // z[t * z_stride + r] = bias[r] + sum over c of w[r][c] * x[t][c], for the rows of panels [first, last)
  // and all tokens. z has room for whole panels.
  void (*stream)(const Panels& w, size_t first, size_t last, const Tokens& x, float* z, size_t z_stride);

  // u[k] (+)= sum over c in [col, col + cols) of w[active[k]][c] * x[token][c], for k in [0, count).
  // Starts from the bias where col is 0, else from u[k]. col and cols are multiples of a line's columns (16
  // for float formats) but for the end of the row. A row that is not listed is never read.
  void (*dot)(const Rows& w, const Tokens& x, size_t token, const int32_t* active, size_t count, size_t col,
              size_t cols, bool prefetch, float* u);

  // y[j] += sum over k of h[k] * w[active[k]][col + j] for j in [0, cols), in the order of the list. h is
  // finite for quantized formats. col and cols as above. work has axpy_work(cols) bytes, aligned to 64.
  void (*axpy)(const Rows& w, const int32_t* active, const float* h, size_t count, size_t col, size_t cols,
               bool prefetch, float* y, void* work);

  // For several tokens; float formats only.

  // v[k * v_stride + t] += sum over c in [0, cols) of w[rows[k]][col + c] * x[t * x_stride + c], for k in [0, count)
  // and all tokens. x is 0 beyond the end of a row. v_stride: tokens, rounded up to kTokenTile at least.
  void (*tile)(const Rows& w, const float* x, size_t x_stride, size_t tokens, const int32_t* rows, size_t count,
               size_t col, size_t cols, const Ahead& ahead, float* v, size_t v_stride);

  // `axpy` for every token's part of a tile, with the same bits: y[t * y_stride + j] += .... The parts list rows among
  // rows[0, count), which lie within [first, first + kTile). work has room for kTile * kMostTileColumns floats.
  void (*add_lists)(const Rows& w, size_t first, const int32_t* rows, size_t count, size_t col, size_t cols,
                    const Ahead& ahead, const Part* parts, size_t tokens, float* y, size_t y_stride, float* work);

  // `tile` for split tokens, [blocks of 16][steps] as Kernels::turn leaves them; null where there are no tiles. None of
  // the rows is wild.
  void (*tile_split)(const Rows& w, const uint8_t* x, size_t tokens, const int32_t* rows, size_t count, size_t col,
                     size_t cols, const Ahead& ahead, float* v, size_t v_stride);
};

constexpr size_t axpy_work(size_t cols) {  // sums, scaled activations as float, then as pairs, their maxima
  const size_t blocks = round_up(blocks_of(cols), kLanes);
  return 4 * (round_up(cols, kPadColumns) + kAxpyChunk * blocks + kAxpyChunk / 2 * blocks + 3 * blocks);
}

struct Kernels {
  const char* isa;
  size_t float_group, int_group;  // the most tokens that `stream` takes side by side
  // `stream` of quantized formats reads digits: each two pairs a, b that meet the same bytes of a line (0 and 1 of
  // I8; 0 and 2, 1 and 3 of I4) become their low digits a0 b0 a1 b1, one byte each, and their high digits likewise,
  // in the places of a and b; for I4 the two low ones first.
  bool digits;
  // Rounds one token of `stride` columns and sets what Tokens says of it. x is finite.
  void (*quantize)(const float* x, size_t stride, Format format, int16_t* q, int16_t* q_dot, float* scale,
                   int32_t* starts, int32_t* sums);
  // Lists the neurons k < count with !(z[k] <= threshold), in order, and packs their z. Writes up to
  // 16 entries beyond the result. active, a: room for count + 16. Returns how many.
  size_t (*compact)(const float* z, size_t count, float threshold, int32_t* active, float* a);
  FormatKernels of[kFormats];

  // Tiles: `stream` of many tokens reads x in parts of 8 bits, each a bfloat16. `split` writes one row of 32 columns
  // for each part into tiles of kSplitTile bytes, [steps of 32 columns][kSplitParts]; 16 tokens share a tile. `turn`
  // makes a tile's pairs of columns its rows, as tile_split reads them.
  void (*split)(const float* x, size_t cols, uint8_t* row);
  void (*turn)(const uint8_t* tile, uint8_t* turned);
};

constexpr size_t kSplitStep = 32, kSplitParts = 3, kSplitTile = 1024;
constexpr size_t kMostSplit = 128;  // tokens
constexpr size_t split_sums_floats(size_t tokens) { return round_up(tokens, kLanes) * kLanes; }
constexpr size_t split_bytes(size_t tokens, size_t cols) {
  return (tokens + kLanes - 1) / kLanes * ((cols + kSplitStep - 1) / kSplitStep) * kSplitParts * kSplitTile;
}
// From here on products of parts might be infinite, and meet with other signs.
constexpr float kSplitMostX = 1e30f, kSplitMostWeight = 1e8f;

extern const Kernels kScalarKernels;  // the reference: double accumulators, no cleverness
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
#if defined(__linux__) && !defined(PROSPARSE_NO_AMX) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define PROSPARSE_AMX
extern const Kernels kAmxKernels;
#endif
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotKernels;
#endif

}  // namespace prosparse

#endif  // PROSPARSE_KERNELS_H_
