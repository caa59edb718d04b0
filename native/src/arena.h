// Memory of packed weights.
#ifndef PROSPARSE_ARENA_H_
#define PROSPARSE_ARENA_H_

#include <cstddef>
#include <cstdint>

#include "mapped_memory.h"

namespace prosparse {

// One operator's packed weights, zeroed. In small pages they cost a quarter of the speed in f32 and half of it in 4
// bits.
class Arena {
 public:
  explicit Arena(size_t bytes);  // throws std::bad_alloc
  uint8_t* take(size_t bytes);   // aligned to 64; the sum of all may not exceed the arena's size

 private:
  size_t bytes_, used_ = 0;
  MappedMemory memory_;
};

}  // namespace prosparse

#endif  // PROSPARSE_ARENA_H_
