// Activations as the kernels read them: padded, quantized to 16 bits, interleaved, or in bfloat16 parts.
#ifndef PROSPARSE_QUANTIZE_ACTIVATIONS_H_
#define PROSPARSE_QUANTIZE_ACTIVATIONS_H_

#include "parallel.h"
#include "scratch.h"

namespace prosparse {

// Quantized kernels take magnitudes below this, so that no product with a scale overflows. A token beyond, or with a
// NaN, is computed by the scalar kernels, which follow IEEE 754.
constexpr float kFallbackFrom = kMaxBf16x3X;
// Floats in a way of the L1 cache: rows a multiple of it apart evict each other.
constexpr size_t kL1WayFloats = 1024;

// Whether all magnitudes are below kFallbackFrom; false for a NaN.
bool is_in_range(const float* values, size_t count);

// Prepares x, [count, cols], for the kernels of one format, a matrix of `panels` panels, and Rows with lane_groups;
// count <= kBatchTokens.
// Sets scratch.needs_fallback and is_nan. May throw std::bad_alloc.
Tokens quantize_activations(const Kernels& kernels, Format format, size_t panels, size_t lane_groups, const float* x,
                            size_t count, size_t cols, const Parallel& parallel, Scratch& scratch);

enum class DotUse { kPanels, kRows, kSharedRows };  // each has DotTokens' members for those before it

// The same for `run`.
DotTokens round_to_bytes(const DotKernels& run, const float* x, size_t count, size_t cols, DotUse use,
                         size_t lane_groups, const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_QUANTIZE_ACTIVATIONS_H_
