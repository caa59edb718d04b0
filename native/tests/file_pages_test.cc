// Pages of a model file go once its weights are packed; a page that was written to keeps its contents.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.h"
#include "file_pages.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

constexpr size_t kBytes = size_t{4} << 20;

size_t resident(const uint8_t* data) {
  std::FILE* file = std::fopen("/proc/self/pagemap", "re");
  if (file == nullptr) return 0;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<uint64_t> entries(kBytes / page);
  fseeko(file, static_cast<off_t>(reinterpret_cast<uintptr_t>(data) / page * 8), SEEK_SET);
  const size_t count = std::fread(entries.data(), 8, entries.size(), file);
  std::fclose(file);
  size_t present = 0;
  for (size_t i = 0; i < count; ++i) present += entries[i] >> 63;
  return present;
}

uint64_t touch(const uint8_t* data) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kBytes; i += 512) sum += data[i];
  return sum;
}

}  // namespace

int main() {
  std::FILE* file = std::tmpfile();
  const std::vector<uint8_t> ones(kBytes, 1);
  CHECK(file != nullptr && std::fwrite(ones.data(), 1, kBytes, file) == kBytes && std::fflush(file) == 0, "no file");
  // As onnxruntime maps the weights of a model.
  void* mapping = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file), 0);
  uint8_t* data = static_cast<uint8_t*>(mapping);
  CHECK(mapping != MAP_FAILED, "no mapping");
  const uint64_t before = touch(data);
  const size_t read = resident(data);
  CHECK(read > 0, "no page is seen: /proc/self/pagemap was not read");
  drop_file_pages(data, kBytes);
  const size_t left = resident(data);
  CHECK(left == 0, "%zu of %zu pages are left", left, read);
  CHECK(touch(data) == before, "the contents changed");

  data[kBytes / 2] = 7;
  drop_file_pages(data, kBytes);
  CHECK(data[kBytes / 2] == 7, "a page that was written to lost its contents");
  munmap(mapping, kBytes);
  std::fclose(file);

  std::vector<uint8_t> heap(kBytes, 3);
  drop_file_pages(heap.data(), kBytes);
  CHECK(heap[kBytes / 2] == 3, "memory that is no file's lost its contents");
  return report(5);
}
