#include "arena.h"

#include <cstdlib>
#include <new>

#include "prosparse/weights.h"

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace prosparse {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

Arena::Arena(size_t bytes) : bytes_(round_up(bytes, kLineBytes)) {
  mapped_ = round_up(bytes_ + 1, kHugePage) + kHugePage;
#if defined(__linux__) || defined(__APPLE__)
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
#else
  mapping_ = std::calloc(mapped_, 1);
  if (mapping_ == nullptr) throw std::bad_alloc();
#endif
  base_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(mapping_), kHugePage));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes_ >= kHugePage / 2) madvise(base_, round_up(bytes_, kHugePage), MADV_HUGEPAGE);  // a hint: may fail
#endif
}

Arena::~Arena() {
#if defined(__linux__) || defined(__APPLE__)
  munmap(mapping_, mapped_);
#else
  std::free(mapping_);
#endif
}

uint8_t* Arena::take(size_t bytes) {
  uint8_t* place = base_ + used_;
  used_ += round_up(bytes, kLineBytes);
  if (used_ > bytes_) throw std::bad_alloc();
  return place;
}

}  // namespace prosparse
