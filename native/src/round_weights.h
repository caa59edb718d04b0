// Weights to integers with one scale per row and group of columns: the search for scales, and rounding.
//
// graph_passes/weights/group_scales.py defines both, operation by operation; these have the same bits, on every
// processor and for any number of threads.
#ifndef PROSPARSE_ROUND_WEIGHTS_H_
#define PROSPARSE_ROUND_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

constexpr size_t kWeightGroup = 32;  // columns that share a scale

// A matrix in a float type: TensorProto.DataType 1 (float32), 10 (float16) or 16 (bfloat16). Strides in elements.
struct SourceWeights {
  const void* data;
  int32_t type;
  int32_t low, high;      // the integers' range: -8 and 7, -127 and 127, or the first and last level
  const int32_t* levels;  // 16 in ascending order, the only integers; null: all of the range
  size_t rows, cols;
  ptrdiff_t row_stride, col_stride;
};

// Where rounded weights go: whichever is not null.
struct RoundedWeights {
  uint8_t* packed;  // [rows, 16 * groups]: two columns a byte, the even one in the low half, each plus 8 or as a place
                    // in levels
  int8_t* bytes;    // [rows, cols]
  float* values;    // integer times scale, at these strides
  ptrdiff_t row_stride, col_stride;
};

// Fractions of the scale that maps the weight of largest magnitude to the last integer, tried in this order.
struct ScaleSearch {
  const float* factors;
  size_t count;
  const float* importance;  // [cols], the weight of each column's squared error; null for 1
};

// Scales as float16 bits, [rows, groups]. False, with some of them unwritten, if a weight is not finite or a scale too
// large for float16, or if the type is unknown.
bool search_scales(const SourceWeights& weights, const ScaleSearch& search, uint16_t* scales, unsigned threads);

// The integers nearest to weight / scale. False, with some of them unwritten, if a weight or scale is not finite.
bool round_weights(const SourceWeights& weights, const uint16_t* scales, const RoundedWeights& rounded,
                   unsigned threads);

// The work on one strip of rows, by instruction set.
struct RoundingKernels {
  const char* isa;
  size_t rows;  // of a strip
  bool (*search)(const SourceWeights& weights, const ScaleSearch& search, size_t strip, uint16_t* scales);
  bool (*round)(const SourceWeights& weights, const uint16_t* scales, size_t strip, const RoundedWeights& rounded);
};

// Best first; the last runs anywhere. `is_supported` as in Variant.
struct RoundingVariant {
  const RoundingKernels* kernels;
  bool (*is_supported)();
};
extern const RoundingVariant kRoundingVariants[];
extern const size_t kRoundingVariantCount;

bool search_scales(const RoundingKernels& kernels, const SourceWeights& weights, const ScaleSearch& search,
                   uint16_t* scales, unsigned threads);
bool round_weights(const RoundingKernels& kernels, const SourceWeights& weights, const uint16_t* scales,
                   const RoundedWeights& rounded, unsigned threads);

}  // namespace prosparse

#endif  // PROSPARSE_ROUND_WEIGHTS_H_
