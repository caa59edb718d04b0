#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

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

// Drops pages only where each page that is there is the file's own, which comes back when it is read again:
// onnxruntime maps files privately and writable, and a page that was written to would lose its contents.
void drop_file_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(data), page);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (first >= last || bytes < (size_t{1} << 20)) return;
  std::vector<uint64_t> pages((last - first) / page);
  std::FILE* file = std::fopen("/proc/self/pagemap", "re");  // 8 bytes a page: Documentation/admin-guide/mm/pagemap
  if (file == nullptr) return;
  const bool is_read = fseeko(file, static_cast<off_t>(first / page * sizeof(uint64_t)), SEEK_SET) == 0 &&
                       std::fread(pages.data(), sizeof(uint64_t), pages.size(), file) == pages.size();
  std::fclose(file);
  constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kOfFile = uint64_t{1} << 61;
  const auto may_go = [](uint64_t entry) {
    return (entry & kSwapped) == 0 && ((entry & kPresent) == 0 || (entry & kOfFile) != 0);
  };
  if (is_read && std::all_of(pages.begin(), pages.end(), may_go)) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace prosparse
