// Large memory from the operating system.
#ifndef PROSPARSE_MAPPED_MEMORY_H_
#define PROSPARSE_MAPPED_MEMORY_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

constexpr size_t kHugePage = size_t{2} << 20;

// Zeroed memory, aligned to 2 MiB, in huge pages where the system has them to give.
class MappedMemory {
 public:
  explicit MappedMemory(size_t bytes);  // throws std::bad_alloc
  ~MappedMemory();
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
  void* mapping_;
  size_t mapped_;
};

}  // namespace prosparse

#endif  // PROSPARSE_MAPPED_MEMORY_H_
