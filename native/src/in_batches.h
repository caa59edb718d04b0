// Many tokens, in batches for kernels that leave tokens of large magnitudes to others.
#ifndef PROSPARSE_IN_BATCHES_H_
#define PROSPARSE_IN_BATCHES_H_

#include <algorithm>

#include "scratch.h"

namespace prosparse {

// batch(first, count) for all tokens, then alone(token) for those that it marked in scratch.needs_fallback.
template <class Batch, class Alone>
void in_batches(size_t tokens, const Scratch& scratch, const Batch& batch, const Alone& alone) {
  for (size_t first = 0; first < tokens; first += kBatchTokens) {
    const size_t count = std::min(kBatchTokens, tokens - first);
    batch(first, count);
    const LeftOut others = scratch.left_out(count);  // `alone` uses scratch again
    for (size_t t = 0; t < count && others.any(); ++t) {
      if (others[t]) alone(first + t);
    }
  }
}

}  // namespace prosparse

#endif  // PROSPARSE_IN_BATCHES_H_
