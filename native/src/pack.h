// From the layout of a model file to the layouts of weights.h.
#ifndef PROSPARSE_PACK_H_
#define PROSPARSE_PACK_H_

#include <memory>

#include "prosparse/weights.h"

namespace prosparse {

// Memory of one operator's repacked weights: zeroed, aligned to 2 MiB and in huge pages where the system has
// them. Small pages cost a quarter of the speed in f32 and half of it in 4 bits.
class Arena {
 public:
  explicit Arena(size_t bytes);  // throws std::bad_alloc
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* take(size_t bytes);  // aligned to 64; the sum of all may not exceed what was asked for

 private:
  uint8_t* base_;
  size_t bytes_, used_ = 0;
  void* mapping_;
  size_t mapped_;
};

size_t panels_bytes(const Matrix& w);
size_t rows_bytes(const Matrix& w);

// Repack with `threads` threads, or with fewer where the system grants no more. `bias` has w.rows (panels, dot) or
// w.cols (axpy) floats and is copied. What is read may begin at any byte. Throws std::bad_alloc when no thread runs.
Panels pack_panels(const Matrix& w, const void* bias, Arena& arena, unsigned threads);
Rows pack_rows(const Matrix& w, const void* bias, RowOrder order, Arena& arena, unsigned threads);

// Gives the memory of a mapped file's pages back; the file's contents come again if they are read. Leaves
// anything else alone (memory without a file behind it, systems other than Linux). May throw std::bad_alloc.
void drop_file_pages(const void* data, size_t bytes);

// One weight, however it is packed. Exact.
double panel_weight(const Panels& w, size_t row, size_t col);
double row_weight(const Rows& w, RowOrder order, size_t row, size_t col);

}  // namespace prosparse

#endif  // PROSPARSE_PACK_H_
