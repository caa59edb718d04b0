#include "arena.h"

#include <new>

#include "prosparse/weights.h"

namespace prosparse {

Arena::Arena(size_t bytes) : bytes_(round_up(bytes, kLineBytes)), memory_(bytes_) {}

uint8_t* Arena::take(size_t bytes) {
  uint8_t* place = memory_.data() + used_;
  used_ += round_up(bytes, kLineBytes);
  if (used_ > bytes_) throw std::bad_alloc();
  return place;
}

}  // namespace prosparse
