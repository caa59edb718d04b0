// Weight formats, one row each. README.md lists what else a new format touches.
#ifndef PROSPARSE_FORMATS_H_
#define PROSPARSE_FORMATS_H_

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace prosparse {

// In the order of kFormatSpecs.
enum class Format { kF32, kF16, kBF16, kI8, kI4 };

// Quantized formats store integers: weight = scale * integer, with one float16 scale per row and group of columns.
struct FormatSpec {
  Format format;
  const char* name;      // suffix of the operators' names: SparseGatedFFNI4
  int onnx_type;         // TensorProto.DataType of the stored weights
  size_t bits;           // per weight; below 8, a byte holds several, the first in the low bits
  int offset;            // added to an integer in packed memory, which makes it unsigned; 0: a float format
  int stored_offset;     // added to it in the model file
  uint16_t bf16_limit;   // 16-bit formats: magnitudes from these bits on are out of range for bfloat16 parts
  size_t bf16_parts;     // bfloat16 parts of a weight (kernels.h); 0: not split
  size_t bf16x3_tokens;  // tokens from which AMX is used; 0: never
  size_t widen_tokens;   // quantized: tokens from which variants with byte dot products widen panels to float32
};

// The last two columns were measured by benchmarks/tuning.py.
constexpr FormatSpec kFormatSpecs[] = {
    {Format::kF32, "F32", 1, 32, 0, 0, 0, 0, 0, 0},          // six products of parts cost more than float32's one
    {Format::kF16, "F16", 10, 16, 0, 0, 0x7c00, 2, 64, 0},   // limit: infinity
    {Format::kBF16, "BF16", 16, 16, 0, 0, 0x4cbe, 1, 8, 0},  // limit: 1e8
    {Format::kI8, "I8", 3, 8, 128, 0, 0, 2, 16, 8},          // signed in the model file
    {Format::kI4, "I4", 2, 4, 8, 8, 0, 2, 16, 24},           // unsigned in the model file
};
constexpr size_t kFormats = std::size(kFormatSpecs);

// FFNs whose down_proj has another format than their other matrices.
struct MixedFormat {
  Format gate_up, down;
};
constexpr MixedFormat kMixedFormats[] = {{Format::kI4, Format::kI8}};

constexpr const FormatSpec& spec(Format f) { return kFormatSpecs[static_cast<size_t>(f)]; }
constexpr bool is_quantized(Format f) { return spec(f).offset != 0; }
constexpr size_t element_bits(Format f) { return spec(f).bits; }
constexpr int field_offset(Format f) { return spec(f).offset; }
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
