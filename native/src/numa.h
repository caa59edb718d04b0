// Memory on machines with several NUMA nodes.
#ifndef PROSPARSE_NUMA_H_
#define PROSPARSE_NUMA_H_

#include <bitset>
#include <cstddef>

namespace prosparse {

using NumaNodes = std::bitset<1024>;

// The nodes whose processors and memory this process may use. None where it has a policy already, for example
// numactl's, or where the system does not say.
NumaNodes usable_nodes();

// Puts the pages of memory that was not touched yet on the nodes in turn. False if the system does not.
bool interleave(void* data, size_t bytes, const NumaNodes& nodes);

}  // namespace prosparse

#endif  // PROSPARSE_NUMA_H_
