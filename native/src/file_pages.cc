#include "file_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

namespace prosparse {

// Linux: drops pages only if each one present is the file's own, which is read again when needed: onnxruntime maps
// files privately and writable, and a page that was written to would lose its contents.
void drop_file_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
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
#elif defined(_WIN32)
  // Unlocking pages that are not locked takes them out of the working set. No contents can be lost: the system writes a
  // page that was changed to the paging file.
  if (bytes >= (size_t{1} << 20)) VirtualUnlock(const_cast<void*>(data), bytes);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace prosparse
