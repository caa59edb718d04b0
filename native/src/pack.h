// Packing: from the layout of a model file to the layouts of weights.h.
#ifndef PROSPARSE_PACK_H_
#define PROSPARSE_PACK_H_

#include "arena.h"
#include "prosparse/weights.h"

namespace prosparse {

// Bytes of an arena that pack_panels and pack_rows take.
size_t panels_bytes(const Matrix& w);
size_t rows_bytes(const Matrix& w);

// Pack with up to `threads` threads. `bias` has w.rows or, for kAxpy, w.cols floats and is copied. Inputs
// need not be aligned. Throw std::bad_alloc when no memory or no thread is left.
// rounded: for operators of accuracy level 4.
Panels pack_panels(const Matrix& w, const void* bias, Arena& arena, unsigned threads, bool rounded = false);
Rows pack_rows(const Matrix& w, const void* bias, RowOrder order, Arena& arena, unsigned threads);

}  // namespace prosparse

#endif  // PROSPARSE_PACK_H_
