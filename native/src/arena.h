// Memory of packed weights.
#ifndef PROSPARSE_ARENA_H_
#define PROSPARSE_ARENA_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

// One operator's packed weights: zeroed, aligned to 2 MiB and in huge pages where the system has them. Small pages cost
// a quarter of the speed in f32 and half of it in 4 bits.
class Arena {
 public:
  explicit Arena(size_t bytes);  // throws std::bad_alloc
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* take(size_t bytes);  // aligned to 64; the sum of all may not exceed the arena's size

 private:
  uint8_t* base_;
  size_t bytes_, used_ = 0;
  void* mapping_;
  size_t mapped_;
};

}  // namespace prosparse

#endif  // PROSPARSE_ARENA_H_
