#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "pack.h"

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
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
  if (bytes_ >= kHugePage / 2) madvise(base_, round_up(bytes_, kHugePage), MADV_HUGEPAGE);  // a wish: no error path
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

void drop_file_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(data), page);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (first >= last || bytes < (size_t{1} << 20)) return;
  std::FILE* maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) return;
  char line[512];
  while (std::fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long begin = 0, end = 0;
    char permissions[8] = "", path[2] = "";
    if (std::sscanf(line, "%lx-%lx %7s %*s %*s %*s %1s", &begin, &end, permissions, path) != 4) continue;
    // Only a file's own pages come back when they are read again: never a page that could have been written to.
    if (begin <= first && last <= end && path[0] == '/' && std::strchr(permissions, 'w') == nullptr) {
      madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
  }
  std::fclose(maps);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace prosparse
