// Many tokens, in batches for kernels that leave tokens of large magnitudes to others.
#ifndef PROSPARSE_IN_BATCHES_H_
#define PROSPARSE_IN_BATCHES_H_

#include <algorithm>

#include "scratch.h"

namespace prosparse {

// batch(first, count) for all tokens, up to `most` at a time, then alone(token) for those that it marked in
// scratch.needs_fallback.
template <class Batch, class Alone>
void in_batches(size_t tokens, size_t most, const Scratch& scratch, const Batch& batch, const Alone& alone) {
  for (size_t first = 0; first < tokens; first += most) {
    const size_t count = std::min(most, tokens - first);
    batch(first, count);
    const LeftOut others = scratch.left_out(count);  // `alone` uses scratch again
    for (size_t t = 0; t < count && others.any(); ++t) {
      if (others[t]) alone(first + t);
    }
  }
}

// The same for y = x . w^T, [tokens, w.rows]: multiply(x, count, z, z_stride), with room for whole panels in z, then
// alone(x, y) for one token.
template <class Multiply, class Alone>
void linear_in_batches(const Panels& w, const float* x, size_t tokens, size_t most, size_t cols, float* y,
                       Scratch& scratch, const Multiply& multiply, const Alone& alone) {
  const size_t padded = w.count() * kLanes;
  float* const z = padded != w.rows ? scratch.z.get<float>(std::min(tokens, most) * padded) : nullptr;
  in_batches(
      tokens, most, scratch,
      [&](size_t first, size_t count) {
        float* const out = y + first * w.rows;
        multiply(x + first * cols, count, z != nullptr ? z : out, padded);
        for (size_t t = 0; t < count && z != nullptr; ++t) std::copy_n(z + t * padded, w.rows, out + t * w.rows);
      },
      [&](size_t t) { alone(x + t * cols, y + t * w.rows); });
}

}  // namespace prosparse

#endif  // PROSPARSE_IN_BATCHES_H_
