// Weight formats, one row each. README.md lists what else a new format touches.
#ifndef PROSPARSE_FORMATS_H_
#define PROSPARSE_FORMATS_H_

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace prosparse {

// In the order of kFormatSpecs.
enum class Format { kF32, kF16, kBF16, kI8, kI4, kNL4 };

// Quantized formats store integers: weight = scale * integer, with one float16 scale per row and group of columns. NL4
// stores codes instead, which stand for integers at unequal distances, closer to each other near 0, where most weights
// are: docs/decisions/quantization.md. These are its integers plus 64. The first is 0, so that a lookup of bytes leaves
// the upper byte of a word 0.
constexpr uint8_t kNonlinearLevels[16] = {0, 14, 24, 33, 40, 47, 53, 59, 64, 71, 77, 84, 92, 100, 111, 126};

struct FormatSpec {
  Format format;
  const char* name;      // suffix of the operators' names: SparseGatedFFNI4
  int onnx_type;         // TensorProto.DataType of the stored weights
  size_t bits;           // per weight; below 8, a byte holds several, the first in the low bits
  int offset;            // field of integer 0 in packed memory, where fields are unsigned; 0: a float format
  int stored_offset;     // field of integer 0 in the model file
  uint16_t bf16_limit;   // 16-bit formats: magnitudes from these bits on are out of range for bfloat16 parts
  size_t bf16_parts;     // bfloat16 parts of a weight (kernels.h); 0: not split
  size_t bf16x3_tokens;  // tokens from which AMX is used; 0: never
  size_t widen_tokens;   // quantized: tokens from which variants with byte dot products widen panels to float32
  const uint8_t* levels = nullptr;  // by field, as unsigned integers; null: the field itself
};

// Measured by benchmarks/tuning.py, bf16x3_tokens of integers by benchmarks/ffn.py --against; those of NL4 are I4's.
constexpr FormatSpec kFormatSpecs[] = {
    {Format::kF32, "F32", 1, 32, 0, 0, 0, 0, 0, 0},          // six products of parts cost more than float32's one
    {Format::kF16, "F16", 10, 16, 0, 0, 0x7c00, 2, 64, 0},   // limit: infinity
    {Format::kBF16, "BF16", 16, 16, 0, 0, 0x4cbe, 1, 8, 0},  // limit: 1e8
    {Format::kI8, "I8", 3, 8, 128, 0, 0, 2, 24, 8},          // signed in the model file
    {Format::kI4, "I4", 2, 4, 8, 8, 0, 2, 24, 24},           // unsigned in the model file
    {Format::kNL4, "NL4", 2, 4, 8, 8, 0, 2, 24, 24, kNonlinearLevels},
};
constexpr size_t kFormats = std::size(kFormatSpecs);

// FFNs whose down_proj has another format than their other matrices.
struct MixedFormat {
  Format gate_up, down;
};
constexpr MixedFormat kMixedFormats[] = {{Format::kI4, Format::kI8}, {Format::kNL4, Format::kI8}};

constexpr const FormatSpec& spec(Format f) { return kFormatSpecs[static_cast<size_t>(f)]; }
constexpr bool is_quantized(Format f) { return spec(f).offset != 0; }
constexpr size_t element_bits(Format f) { return spec(f).bits; }
constexpr int field_offset(Format f) { return spec(f).offset; }
constexpr bool is_nonlinear(Format f) { return spec(f).levels != nullptr; }
constexpr int level(Format f, size_t field) {  // unsigned
  return is_nonlinear(f) ? spec(f).levels[field] : static_cast<int>(field);
}
constexpr int level_offset(Format f) { return level(f, static_cast<size_t>(field_offset(f))); }  // level of integer 0
constexpr size_t fields(Format f) { return 16 / spec(f).bits; }  // per 16-bit word, quantized formats only

constexpr bool specs_are_in_order() {
  for (size_t i = 0; i < kFormats; ++i) {
    if (kFormatSpecs[i].format != static_cast<Format>(i)) return false;
  }
  return true;
}
static_assert(specs_are_in_order());

}  // namespace prosparse

#endif  // PROSPARSE_FORMATS_H_
