#include "numa.h"

#if defined(__linux__) && !defined(__ANDROID__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>
#endif

namespace prosparse {

// Android ends processes that make these calls. libnuma would be a dependency for two of them.
#if defined(__linux__) && !defined(__ANDROID__) && defined(SYS_mbind) && defined(SYS_get_mempolicy)

namespace {

// By hand: the kernel header that names them is not everywhere.
constexpr int kDefault = 0, kInterleave = 3;
constexpr unsigned long kMemoryAllowed = 4;

constexpr size_t kBits = 8 * sizeof(unsigned long);
struct Mask {
  unsigned long words[NumaNodes().size() / kBits];
};

bool has_own_processor(size_t node) {
  cpu_set_t processors;
  if (sched_getaffinity(0, sizeof(processors), &processors) != 0) return true;
  for (size_t i = 0; i < CPU_SETSIZE; ++i) {
    const std::string place = "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/node" + std::to_string(node);
    if (CPU_ISSET(i, &processors) && access(place.c_str(), F_OK) == 0) return true;
  }
  return false;
}

}  // namespace

NumaNodes usable_nodes() {
  NumaNodes nodes;
  int policy = kDefault;
  Mask mask{};
  if (syscall(SYS_get_mempolicy, &policy, nullptr, 0UL, nullptr, 0UL) != 0 || policy != kDefault) return nodes;
  if (syscall(SYS_get_mempolicy, nullptr, mask.words, nodes.size(), nullptr, kMemoryAllowed) != 0) return nodes;
  for (size_t i = 0; i < nodes.size(); ++i)
    nodes[i] = (mask.words[i / kBits] >> i % kBits & 1) != 0 && has_own_processor(i);
  return nodes;
}

bool interleave(void* data, size_t bytes, const NumaNodes& nodes) {
  Mask mask{};
  for (size_t i = 0; i < nodes.size(); ++i) mask.words[i / kBits] |= static_cast<unsigned long>(nodes[i]) << i % kBits;
  // The kernel leaves the last bit of the size out.
  return syscall(SYS_mbind, data, bytes, kInterleave, mask.words, nodes.size() + 1, 0U) == 0;
}

#else

NumaNodes usable_nodes() { return {}; }

bool interleave(void*, size_t, const NumaNodes&) { return false; }

#endif

}  // namespace prosparse
