// The kernels' contract: one set of kernels per ISA, one table entry per weight format.
//
// Layouts are those of weights.h. The caller checks its arguments: kernels have no error path, allocate nothing and do
// not throw. Outputs may not overlap inputs.
//
// Order: each output element is the result of the same operations however a call is split by rows, by list entries or
// by columns, so results do not depend on the number of threads. Variants round differently; so may gemm_panels calls
// with different numbers of tokens.
//
// Error, for n products a_i * b_i: float formats within gamma(n + 2) * sum |a_i * b_i| of the exact sum,
// gamma(n) = n * u / (1 - n * u), u = 2^-24 (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.,
// section 3.1). Quantized formats multiply integers exactly and round the activations to 16 bits: gemm_panels and
// gather_dot per group of 32 columns, to multiples of max|x| / kSteps over that group; scatter_axpy per chunk of
// kScatterChunk list entries and group of columns, to multiples of max|h * scale| / kSteps. Half such a step, times
// |integer|, is added to the bound for each product. Not rounded: activations of the scalar variant, and of gemm_panels
// from widen_tokens on. From bf16x3_tokens on a product is up to five and activations are not rounded, but weights of
// quantized formats are, by up to 2^-16 of each: gamma(3 * n + 4), and the same half step. AMX flushes what is below
// 2^-126 to 0, which adds n * 2^-98; results within 2^-8 of the largest float may be infinite.
#ifndef PROSPARSE_KERNELS_H_
#define PROSPARSE_KERNELS_H_

#include <atomic>

#include "prosparse/attention.h"
#include "prosparse/dot_kernels.h"
#include "prosparse/weights.h"

namespace prosparse {

constexpr size_t kScatterChunk = 128;
constexpr float kSteps = 32639.0f;   // 127 * 257: a rounded activation is 256 times a signed byte plus another
constexpr size_t kPadColumns = 128;  // activations and results are padded to a multiple of this

// Activations, [tokens, cols]. Columns beyond cols are 0.
struct Tokens {
  const float* x;              // [tokens][stride]
  size_t count, cols, stride;  // stride: cols rounded up, at least to 16
  // Quantized formats only: x = scale * q, rounded to nearest.
  const int16_t* q;       // [tokens][stride]
  const int16_t* q_dot;   // [tokens][stride], per line of Rows by field, then by word
  const float* scale;     // [tokens][stride / 32]
  const int32_t* starts;  // [tokens][stride / 2], 16 per line: -level_offset times the sum of q_dot's pairs; for
                          // groups with lanes in the first of their lines, of all of them
  const int32_t* sums;    // [tokens][stride / 32]: -level_offset times the sum of a group
  // x and q interleaved by token in groups of group_size(): gemm_panels reads these.
  const float* grouped_x;
  const int32_t* grouped_q;
  // x in bfloat16 parts, see Kernels::to_bf16x3; null below bf16x3_tokens. Else grouped_x and grouped_q are not set,
  // and tokens out of range are zeros here: gate_gemm computes them.
  const uint8_t* bf16x3;
  float* amx_sums;  // work space of gemm_panels: amx_sums_floats(count) for each panel of the matrix
};

// One of the tokens: for float formats, and for the scalar variant.
inline Tokens one_token(const Tokens& x, size_t token) {
  Tokens one = x;
  one.count = 1;
  one.grouped_x = one.x = x.x + token * x.stride;
  one.bf16x3 = nullptr;
  return one;
}

// How many of `count` tokens to interleave, up to `most`: groups of about equal size, since a small group reads as many
// weights as a large one.
constexpr size_t group_size(size_t count, size_t most) {
  const size_t groups = (count + most - 1) / most;
  return groups == 0 ? 1 : (count + groups - 1) / groups;
}

constexpr size_t kTileRows = 60;  // rows of a tile, which stays in a cache while several tokens use it
constexpr size_t kMaxTileColumns = 128;
constexpr size_t kTokenTile = 4;

// Rows to prefetch from column `col` on.
struct PrefetchRows {
  const int32_t* rows;
  size_t count, col;
};

// One token's active neurons in a tile: h[i] belongs to row active[i].
struct ScatterList {
  const int32_t* active;
  const float* h;
  size_t count;
};

constexpr size_t kBf16Step = 32, kBf16Parts = 3, kAmxTileBytes = 1024;

constexpr size_t kMaxBf16Tokens = 256;  // of Bf16Tokens
// Steps of 32 columns at a time: two tiles' weights stay in the L1 cache, and sums of 128 tokens with them.
constexpr size_t kBf16Steps = 8, kBf16Bytes = kBf16Steps * kAmxTileBytes;
// Where step s of the first of `tiles` tiles of tokens begins: [steps / 8][tiles][8].
constexpr size_t bf16_place(size_t s, size_t tiles) {
  return s / kBf16Steps * tiles * kBf16Bytes + s % kBf16Steps * kAmxTileBytes;
}
constexpr size_t bf16_tokens_bytes(size_t steps, size_t tiles) {
  return round_up(steps, kBf16Steps) * tiles * kAmxTileBytes;
}

// Tokens at accuracy level 4: each value rounded to one bfloat16. Operands of tiles, each
// where bf16_place has its step, [tiles of 16 tokens] kBf16Bytes apart.
struct Bf16Tokens {
  size_t count, cols, steps;  // steps of 32 columns: cols rounded up to kPadColumns
  const uint8_t* left;        // a row for each token; null if panels are left operands
  const uint8_t* right;       // transposed; null where neither panels nor up_proj's rows are left operands
};

// 32 neurons that tokens use, as a step of down_proj.
struct Bf16Step {
  const int32_t* rows;  // the neurons; those from `count` on are any that are used
  size_t count, index;  // index: the step's place in Bf16Hidden
  const float* a;       // [count][a_stride]: of each neuron for all tokens, 0 where inactive
};

// down_proj's input at accuracy level 4.
struct Bf16Hidden {
  const int32_t* rows;    // [steps][32]
  const int32_t* places;  // [used]: the steps in use
  size_t used, steps, tokens, a_stride;
  uint8_t* left;                    // as of Bf16Tokens; columns 2 * i and 2 * i + 1 are rows i and 16 + i of a step
  std::atomic<bool>* out_of_range;  // by token: set where a magnitude is kMaxBf16x3X or more, or NaN
  bool drelu;
};

// Accuracy level 4 (docs/reference/operators.md): null where the exact kernels serve for it.
//
// Error: both factors of a multiplication are rounded to bfloat16, by up to 2^-8 of each, which is less than half a
// step of 8 bits (1/254 of a group's largest magnitude) for activations. So the bound of bf16x3_tokens above with one
// multiplication, and (2^-7 + 2^-16) * |w * a| instead of what it has for weights and steps.
struct RoundedKernels {
  size_t tokens;                                      // from which they may be used; 0: never
  bool panels_are_left;                               // operands, so that linear and gate read Bf16Tokens::right
  bool (*is_in_range)(const float* x, size_t count);  // whether all magnitudes are below kMaxBf16x3X
  // 16 tokens as one of `tiles` tiles of Bf16Tokens: zeros for those that are null. left or right may be null.
  void (*to_tiles)(const float* const (&x)[kLanes], size_t cols, size_t steps, size_t tiles, uint8_t* left,
                   uint8_t* right);
  // As gemm_panels.
  void (*linear)(const Panels& w, size_t first, size_t last, const Bf16Tokens& x, float* z, size_t z_stride);
  // The same, but z[(r - 16 * first) * z_stride + t]; z_stride is a multiple of 16.
  void (*gate)(const Panels& w, size_t first, size_t last, const Bf16Tokens& x, float* z, size_t z_stride);
  // a = z of one neuron where !(z <= threshold), or by magnitude; else 0, also up to a multiple of 16 tokens. Returns
  // whether any is active.
  bool (*activate)(const float* z, size_t count, float threshold, bool by_magnitude, bool squared, float* a);
  // h.left of some steps: a * v, with v of up_proj.
  void (*up)(const Rows& w, const Bf16Tokens& x, const Bf16Step* steps, size_t count, const Bf16Hidden& h);
  void (*hidden)(const Bf16Step* steps, size_t count, const Bf16Hidden& h);  // without a gate: a itself
  // y[t * y_stride + j] = bias[j] + sum over h's neurons, for columns [first, last), in units of kPadColumns. sums:
  // work space, [d_model, rounded up][tokens rounded up to 16].
  void (*down)(const Rows& w, const Bf16Hidden& h, size_t first, size_t last, float* sums, float* y, size_t y_stride);
};

struct FormatKernels {
  size_t bf16x3_tokens;  // tokens from which gemm_panels reads Tokens::bf16x3; 0: never
  size_t widen_tokens;   // tokens from which gemm_panels widens quantized weights to float32 and reads grouped_x

  // z[t * z_stride + r] = bias[r] + sum over c of w[r][c] * x[t][c], for the rows of panels [first, last) and all
  // tokens. z has room for whole panels.
  void (*gemm_panels)(const Panels& w, size_t first, size_t last, const Tokens& x, float* z, size_t z_stride);

  // u[k] (+)= sum over c in [col, col + cols) of w[active[k]][c] * x[token][c], for k in [0, count). Starts from the
  // bias where col is 0, else from u[k]. col and cols are multiples of 16 for float formats, else of 512, except at the
  // end of the row. Rows that are not listed are never read. prefetches: how often upcoming rows are prefetched, 0, 1
  // or 2.
  void (*gather_dot)(const Rows& w, const Tokens& x, size_t token, const int32_t* active, size_t count, size_t col,
                     size_t cols, int prefetches, float* u);

  // y[j] += sum over k of h[k] * w[active[k]][col + j] for j in [0, cols), in the order of the list. h is finite for
  // quantized formats. col and cols are multiples of a line's columns (16 for float formats), except at the end of the
  // row. work: scatter_axpy_work_bytes(cols), aligned to 64.
  void (*scatter_axpy)(const Rows& w, const int32_t* active, const float* h, size_t count, size_t col, size_t cols,
                       int prefetches, float* y, void* work);

  // Several tokens, float formats only.

  // v[k * v_stride + t] += sum over c in [0, cols) of w[rows[k]][col + c] * x[t * x_stride + c], for k in [0, count)
  // and all tokens. x is 0 beyond the end of a row. v_stride: at least tokens rounded up to kTokenTile.
  void (*gather_gemm)(const Rows& w, const float* x, size_t x_stride, size_t tokens, const int32_t* rows, size_t count,
                      size_t col, size_t cols, const PrefetchRows& next, float* v, size_t v_stride);

  // scatter_axpy of every token's list, with the same bits: y[t * y_stride + j] += .... The lists contain only
  // rows[0, count), which lie within [first, first + kTileRows). work: kTileRows * kMaxTileColumns floats.
  void (*scatter_gemm)(const Rows& w, size_t first, const int32_t* rows, size_t count, size_t col, size_t cols,
                       const PrefetchRows& next, const ScatterList* lists, size_t tokens, float* y, size_t y_stride,
                       float* work);

  // gather_gemm of tokens in bfloat16 parts, [16 tokens][steps] as Kernels::vnni_transpose leaves them; null without
  // AMX. No row may be out of range.
  void (*gather_gemm_bf16x3)(const Rows& w, const uint8_t* x, size_t tokens, const int32_t* rows, size_t count,
                             size_t col, size_t cols, const PrefetchRows& next, float* v, size_t v_stride);

  RoundedKernels rounded;
  DotKernels dot;    // accuracy level 4
  DotKernels exact;  // level 0
};

constexpr size_t scatter_axpy_work_bytes(size_t cols) {  // sums, scaled activations as float, then as pairs, maxima
  const size_t groups = round_up(groups_of(cols), kLanes);
  return 4 * (round_up(cols, kPadColumns) + kScatterChunk * groups + kScatterChunk / 2 * groups + 3 * groups);
}

struct Kernels {
  const char* isa;
  size_t float_group, int_group;  // the most tokens that gemm_panels takes interleaved
  // Whether gemm_panels reads quantized activations as bytes: of each two pairs a, b that meet the same bytes of a line
  // (0 and 1 of I8; 0 and 2, 1 and 3 of I4) the low bytes a0 b0 a1 b1 replace a, the high bytes replace b; for I4 both
  // low ones come first.
  bool low_high_bytes;
  RowOrder up_order;  // of up_proj's rows, as a variant reads them best; those without AMX read both
  // Rounds one token of `stride` columns and fills in its part of Tokens. x is finite. lane_groups: of Rows.
  void (*quantize)(const float* x, size_t stride, Format format, size_t lane_groups, int16_t* q, int16_t* q_dot,
                   float* scale, int32_t* starts, int32_t* sums);
  // Lists the neurons k < count with !(z[k] <= threshold), in order, and packs their z. Writes up to 16 entries beyond
  // the result. active, a: room for count + 16. Returns how many.
  size_t (*compact)(const float* z, size_t count, float threshold, int32_t* active, float* a);
  AttentionKernels attention;
  FormatKernels of[kFormats];

  // AMX only: x as the sum of three bfloat16 parts of 8 bits. to_bf16x3 writes one row of 32 columns per part into
  // tiles of kAmxTileBytes, [steps of 32 columns][kBf16Parts]; 16 tokens share a tile. vnni_transpose turns a tile's
  // pairs of columns into rows, as gather_gemm_bf16x3 reads them.
  void (*to_bf16x3)(const float* x, size_t cols, uint8_t* row);
  void (*vnni_transpose)(const uint8_t* tile, uint8_t* transposed);
};

constexpr size_t kMaxBf16x3Tokens = 128;
constexpr size_t amx_sums_floats(size_t tokens) { return round_up(tokens, kLanes) * kLanes; }
constexpr size_t bf16x3_bytes(size_t tokens, size_t cols) {
  return (tokens + kLanes - 1) / kLanes * ((cols + kBf16Step - 1) / kBf16Step) * kBf16Parts * kAmxTileBytes;
}
// From here on products of parts might overflow, and cancel to NaN. Of weights: FormatSpec::bf16_limit.
constexpr float kMaxBf16x3X = 1e30f;

using DotLevel = DotKernels FormatKernels::*;  // FormatKernels::dot or exact
inline const DotKernels& dot_kernels(const Kernels& kernels, Format format, DotLevel level) {
  return kernels.of[static_cast<size_t>(format)].*level;
}

extern const Kernels kScalarKernels;  // the reference: double accumulators, no optimization
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
#if !defined(PROSPARSE_NO_AVXVNNI)
#define PROSPARSE_AVXVNNI
const Kernels& avx_vnni_kernels();
#endif
extern const Kernels kAvx512Kernels;
const Kernels& avx512_vnni_kernels();
extern const Kernels kAvx512Bf16Kernels;
#if (defined(__linux__) || defined(_WIN32)) && !defined(PROSPARSE_NO_AMX) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define PROSPARSE_AMX
extern const Kernels kAmxKernels;
#endif
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
const Kernels& neon_dot_kernels();
const Kernels& neon_i8mm_kernels();
#endif

}  // namespace prosparse

#endif  // PROSPARSE_KERNELS_H_
