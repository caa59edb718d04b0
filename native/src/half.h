// float16 and bfloat16 to float32, for code that is not performance-critical.
#ifndef PROSPARSE_HALF_H_
#define PROSPARSE_HALF_H_

#include <cstdint>
#include <cstring>

namespace prosparse {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float bf16_to_float(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

// IEEE 754 binary16, all values: subnormal, infinite, NaN with its payload.
inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return from_bits(sign | ((magnitude << 13) + 0x38000000u));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}

}  // namespace prosparse

#endif  // PROSPARSE_HALF_H_
