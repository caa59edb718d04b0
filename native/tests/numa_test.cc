// Memory in turn on NUMA nodes. With one node, what the kernel says of the memory is all that can be seen.
#include "numa.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

#include "check.h"
#include "mapped_memory.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

// The policy of the memory that begins at data: the second word of its line in numa_maps. "" if there is none.
std::string policy_of(const void* data) {
  std::FILE* const file = std::fopen("/proc/self/numa_maps", "re");
  if (file == nullptr) return "";
  char line[1024], policy[64] = "";
  std::string found;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    uintptr_t begin = 0;
    if (std::sscanf(line, "%" SCNxPTR " %63s", &begin, policy) == 2 && begin == reinterpret_cast<uintptr_t>(data))
      found = policy;
  }
  std::fclose(file);
  return found;
}

}  // namespace

int main() {
  constexpr size_t kBytes = 4 * kHugePage;
  const NumaNodes nodes = usable_nodes();
  MappedMemory memory(kBytes);
  const bool is_known = nodes.any();
  CHECK(!is_known || interleave(memory.data(), kBytes, nodes),
        "pages cannot be interleaved on the process's own nodes");
  std::memset(memory.data(), 1, kBytes);
  CHECK(memory.data()[kBytes - 1] == 1, "memory cannot be written");
  const std::string policy = policy_of(memory.data());
  if (!is_known || policy.empty()) {
    std::printf("left out: no NUMA policies here\n");
  } else {
    CHECK(policy.rfind("interleave:", 0) == 0, "the policy is %s", policy.c_str());
  }
  NumaNodes none;
  none[none.size() - 1] = true;
  CHECK(!interleave(memory.data(), kBytes, none), "a node that does not exist was accepted");
  return report(3);
}
