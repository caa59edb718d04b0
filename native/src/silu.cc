#include "silu.h"

#include <cmath>
#include <cstring>

namespace prosparse {
namespace {

// exp(x) for x in [-104, 140]: 0 and Inf beyond what a float holds. Cephes' expf: x = n ln2 + r, a polynomial in r.
// Branch-free and without calls, so that compilers vectorize the loop around it.
inline float exp_clamped(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const int32_t exponent = bits - 0x4b400000;  // n
  const int32_t half = exponent >> 1;          // two factors: 2^n itself may be no normal float
  const int32_t first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
  float first, second;
  std::memcpy(&first, &first_bits, 4);
  std::memcpy(&second, &second_bits, 4);
  return p * first * second;
}

}  // namespace

void silu(float* z, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float low = -z[i] > -104.0f ? -z[i] : -104.0f;  // a NaN: the product below keeps it
    z[i] = z[i] / (1.0f + exp_clamped(low < 140.0f ? low : 140.0f));
  }
}

size_t compact_magnitude(const float* z, size_t count, float threshold, int32_t* active, float* a) {
  size_t found = 0;
  for (size_t k = 0; k < count; ++k) {
    active[found] = static_cast<int32_t>(k);
    a[found] = z[k];
    found += !(std::fabs(z[k]) <= threshold);
  }
  return found;
}

}  // namespace prosparse
