#include "mapped_memory.h"

#include <new>

#include "numa.h"
#include "prosparse/weights.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace prosparse {

#if defined(_WIN32)

namespace {
// Large pages are for processes that hold "Lock pages in memory" and have turned it on; others get ordinary pages.
void* allocate(size_t bytes) {
  constexpr DWORD kFlags = MEM_RESERVE | MEM_COMMIT;
  const size_t page = GetLargePageMinimum();
  if (page != 0 && bytes >= page) {
    void* const large = VirtualAlloc(nullptr, round_up(bytes, page), kFlags | MEM_LARGE_PAGES, PAGE_READWRITE);
    if (large != nullptr) return large;
  }
  return VirtualAlloc(nullptr, bytes, kFlags, PAGE_READWRITE);
}
}  // namespace

MappedMemory::MappedMemory(size_t bytes) : mapped_(bytes + kHugePage) {
  mapping_ = allocate(mapped_);
  if (mapping_ == nullptr) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(mapping_), kHugePage));
}

MappedMemory::~MappedMemory() { VirtualFree(mapping_, 0, MEM_RELEASE); }

#else

MappedMemory::MappedMemory(size_t bytes) : mapped_(round_up(bytes + 1, kHugePage) + kHugePage) {
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(mapping_), kHugePage));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage / 2) madvise(data_, round_up(bytes, kHugePage), MADV_HUGEPAGE);  // a hint: may fail
#endif
  static const NumaNodes nodes = usable_nodes();
  if (nodes.count() > 1) interleave(data_, round_up(bytes, kHugePage), nodes);  // all sockets read at the same time
}

MappedMemory::~MappedMemory() { munmap(mapping_, mapped_); }

#endif

}  // namespace prosparse
