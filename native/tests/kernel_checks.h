// What the tests of kernels share.
#ifndef PROSPARSE_TESTS_KERNEL_CHECKS_H_
#define PROSPARSE_TESTS_KERNEL_CHECKS_H_

#include "matrices.h"
#include "parallel.h"

namespace prosparse::testing {

inline size_t cases = 0;
inline const Parallel kSerial{run_serially, nullptr};

inline void expect(const Kernels& k, Format f, const char* kernel, double actual, double exact, double bound,
                   size_t cols) {
  ++cases;
  CHECK(std::abs(actual - exact) <= bound, "%s %s %s cols=%zu: expected %.9g, got %.9g, bound %.3g", k.isa,
        kFormatNames[static_cast<size_t>(f)], kernel, cols, exact, actual, bound);
}

// Rows that are not listed are NaN or infinite, so that reading one shows.
inline void poison(Stored& w, const std::vector<int32_t>& active) {
  for (size_t r = 0; r < w.matrix.rows; ++r) {
    if (!std::binary_search(active.begin(), active.end(), static_cast<int32_t>(r))) poison_row(w, r, r % 3);
  }
}

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_KERNEL_CHECKS_H_
