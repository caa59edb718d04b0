// Tasks on onnxruntime's threads, and how work is cut into them.
#ifndef PROSPARSE_PARALLEL_H_
#define PROSPARSE_PARALLEL_H_

#include <algorithm>
#include <cstddef>

namespace prosparse {

// Runs task(argument, i) for every i in [0, count), in any order, on any threads; returns when all are done.
struct Parallel {
  void (*run)(void* context, size_t count, void (*task)(void* argument, size_t index), void* argument);
  void* context;
};

template <class Task>
void parallel_for(const Parallel& parallel, size_t count, const Task& task) {
  if (count == 1) return task(0);
  parallel.run(
      parallel.context, count, [](void* argument, size_t i) { (*static_cast<const Task*>(argument))(i); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

struct Range {
  size_t begin, end;
};

// Part `index` of `total` cut into `pieces`, at multiples of `multiple`.
inline Range piece(size_t total, size_t pieces, size_t index, size_t multiple) {
  const size_t size = ((total + pieces - 1) / pieces + multiple - 1) / multiple * multiple;
  return {std::min(total, index * size), std::min(total, (index + 1) * size)};
}

}  // namespace prosparse

#endif  // PROSPARSE_PARALLEL_H_
