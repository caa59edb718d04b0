// Address space far beyond the machine's memory: zeros, of which only pages that are written to take any.
#ifndef PROSPARSE_TESTS_SPARSE_MEMORY_H_
#define PROSPARSE_TESTS_SPARSE_MEMORY_H_

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "check.h"

namespace prosparse::testing {

class SparseMemory {
 public:
  explicit SparseMemory(size_t bytes) : bytes_(bytes) {
    int flags = MAP_PRIVATE | MAP_ANON;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping == MAP_FAILED) {
      std::printf("no %zu bytes of address space\n", bytes);
      std::exit(1);
    }
    data_ = static_cast<uint8_t*>(mapping);
#if defined(MADV_HUGEPAGE)
    madvise(mapping, bytes, MADV_HUGEPAGE);  // reading 2 GB of zeros is then a thousand page faults, not half a million
#endif
  }
  ~SparseMemory() { munmap(data_, bytes_); }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  size_t bytes_;
  uint8_t* data_;
};

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_SPARSE_MEMORY_H_
