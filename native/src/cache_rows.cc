// Compiled with -ffp-contract=off: a fused multiply-add would round keys to other bytes than the function body.
#include "cache_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace prosparse {
namespace {

constexpr int32_t kInfinite = 0x7f800000;  // bits of |x| from here on: infinity and NaN

// The bits of max|x|, which are ordered as the numbers are.
int32_t largest_bits(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    largest = std::max(largest, bits & 0x7fffffff);
  }
  return largest;
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The smallest bfloat16 of at least `least`.
uint32_t bf16_above(float least) {
  uint32_t bits;
  std::memcpy(&bits, &least, 4);
  return (bits + 0xffffu) >> 16;
}

void store_row(const float* x, size_t head_dim, int8_t* row) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  int8_t* scales = row + head_dim;
  for (size_t d = 0; d < head_dim; d += kCacheGroup, scales += 2) {
    const size_t end = std::min(head_dim, d + kCacheGroup);
    const float largest = from_bits(static_cast<uint32_t>(largest_bits(x + d, end - d)));
    const uint32_t upper = bf16_above(std::max(largest / 127.0f, 1.17549435e-38f));
    const float scale = from_bits(upper << 16);
    for (size_t i = d; i < end; ++i) row[i] = static_cast<int8_t>(static_cast<int32_t>(x[i] / scale + kRound - kRound));
    scales[0] = static_cast<int8_t>(upper & 0xff);
    scales[1] = static_cast<int8_t>(upper >> 8);
  }
}

void store_not_finite(size_t head_dim, uint16_t scale, int8_t* row) {
  std::memset(row, 0, head_dim);
  for (size_t g = 0; g < cache_groups(head_dim); ++g) {
    row[head_dim + 2 * g] = static_cast<int8_t>(scale & 0xff);
    row[head_dim + 2 * g + 1] = static_cast<int8_t>(scale >> 8);
  }
}

}  // namespace

void rotate(const float* x, size_t head_dim, const float* cos, const float* sin, size_t pairs, float* y) {
  for (size_t d = 0; d < pairs; ++d) {
    const float low = x[d], high = x[d + pairs];
    y[d] = low * cos[d] - high * sin[d];
    y[d + pairs] = high * cos[d] + low * sin[d];
  }
  if (y != x) std::copy(x + 2 * pairs, x + head_dim, y + 2 * pairs);
}

bool is_finite(const float* x, size_t count) { return largest_bits(x, count) < kInfinite; }

void store_rows(const float* key, const float* value, size_t head_dim, int8_t* key_row, int8_t* value_row) {
  constexpr uint16_t kNan = 0x7fc0;
  if (is_finite(key, head_dim) && is_finite(value, head_dim)) {
    store_row(key, head_dim, key_row);
    store_row(value, head_dim, value_row);
  } else {
    store_not_finite(head_dim, kNan, key_row);
    store_not_finite(head_dim, 0, value_row);
  }
}

}  // namespace prosparse
