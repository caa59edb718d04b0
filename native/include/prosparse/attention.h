// The contract of attention over a KV cache: its layout, and the kernels.
//
// A cached key or value in float32 is `head_dim` floats. In 8 bits, it is `head_dim` signed bytes, then a bfloat16
// scale for each group of 32 of them (the last may be shorter): value = scale * byte. Both are exact in float32, so
// that kernels compute with the cached values themselves. In ONNX, such a cache is int8 [batch, kv_heads, slots,
// cache_row_bytes(head_dim)]; a scale's lower byte comes first.
//
// Rounding: scale = max|x| / 127, rounded up to bfloat16, at least 2^-126; byte = x / scale, rounded to nearest even.
// If a key or value is not finite, both rows are: the key's scales are NaN, bytes and the value's scales 0. Then every
// query that sees the token gets NaN, and no other does.
//
// Error: scores within gamma(head_dim + 4) * sum |q_i * k_i|; those of a single query (rows == 1) and an 8-bit cache
// also half a step, max|q| / kSteps of each group, times |k_i|. exp within 4 units in the last place; sums in float32.
#ifndef PROSPARSE_ATTENTION_H_
#define PROSPARSE_ATTENTION_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

enum class CacheFormat : uint8_t { kI8, kF32 };
constexpr size_t kCacheFormats = 2;

constexpr size_t kCacheGroup = 32;
constexpr size_t cache_groups(size_t head_dim) { return (head_dim + kCacheGroup - 1) / kCacheGroup; }
constexpr size_t cache_row_bytes(size_t head_dim) { return head_dim + 2 * cache_groups(head_dim); }

constexpr size_t cache_row_bytes(CacheFormat format, size_t head_dim) {
  return format == CacheFormat::kI8 ? cache_row_bytes(head_dim) : head_dim * sizeof(float);
}

constexpr size_t kKeyTile = 32;  // tokens that several queries read at once, in float32

// Consecutive tokens of one KV head.
struct CacheRows {
  const void* data;
  size_t head_dim, count;
};

// Reading a cache of one format.
struct CacheKernels {
  // scores[r * stride + t] = sum over d of q[r][d] * key(t)[d], for rows queries and all tokens. q is [rows][padded],
  // padded = head_dim rounded up to 16, and 0 beyond head_dim. stride: at least the count rounded up to kKeyTile, and
  // as much may be written. tile: kKeyTile * padded floats of work space.
  void (*scores)(const float* q, size_t rows, const CacheRows& keys, float* tile, float* scores, size_t stride);

  // y[r][d] += sum over t of weights[r * stride + t] * value(t)[d], in the order of the tokens. y is as q.
  void (*values)(const float* weights, size_t stride, size_t rows, const CacheRows& values, float* tile, float* y);
};

struct AttentionKernels {
  CacheKernels cache[kCacheFormats];

  // The largest of count scores, or a lower bound of -FLT_MAX; a NaN does not count.
  float (*top)(const float* scores, size_t count);

  // Replaces count scores by exp(score - top) and returns their sum. A NaN stays one. top: at least the largest.
  float (*exponentials)(float* scores, size_t count, float top);
};

}  // namespace prosparse

#endif  // PROSPARSE_ATTENTION_H_
