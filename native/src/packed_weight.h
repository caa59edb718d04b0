// Reading single weights from packed memory: for the scalar kernels and the tests.
#ifndef PROSPARSE_PACKED_WEIGHT_H_
#define PROSPARSE_PACKED_WEIGHT_H_

#include "prosparse/weights.h"

namespace prosparse {

// Exact.
double panel_weight(const Panels& w, size_t row, size_t col);
double row_weight(const Rows& w, RowOrder order, size_t row, size_t col);

}  // namespace prosparse

#endif  // PROSPARSE_PACKED_WEIGHT_H_
