// A parallel loop on its own threads, for work that is done once: kernels run on onnxruntime's threads.
#ifndef PROSPARSE_IN_PARALLEL_H_
#define PROSPARSE_IN_PARALLEL_H_

#include <algorithm>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace prosparse {

// Runs task(k) for every k in [0, count), on up to `threads` threads of which the caller's is one. Where the system
// grants fewer, the caller's does the rest. If tasks throw, one of their exceptions is thrown when all threads have
// ended; then some k may have been left out.
template <class Task>
void in_parallel(size_t count, unsigned threads, const Task& task) {
  const size_t workers = std::clamp<size_t>(threads, 1, std::max<size_t>(count, 1));
  const size_t share = (count + workers - 1) / workers;
  std::vector<std::exception_ptr> failures(workers);  // one per worker
  const auto run_share = [&](size_t i) noexcept {
    try {
      for (size_t k = i * share; k < std::min(count, (i + 1) * share); ++k) task(k);
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  try {
    while (pool.size() + 1 < workers) pool.emplace_back(run_share, pool.size() + 1);
  } catch (const std::exception&) {  // std::system_error, or std::bad_alloc of what std::thread itself keeps
  }
  run_share(0);
  for (size_t i = pool.size() + 1; i < workers; ++i) run_share(i);
  for (std::thread& worker : pool) worker.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure != nullptr) std::rethrow_exception(failure);
  }
}

}  // namespace prosparse

#endif  // PROSPARSE_IN_PARALLEL_H_
