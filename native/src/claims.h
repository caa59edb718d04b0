// Tasks that threads claim one after another, so that a slow thread does not hold the others.
#ifndef PROSPARSE_CLAIMS_H_
#define PROSPARSE_CLAIMS_H_

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "parallel.h"

namespace prosparse {

// The tasks [0, count). onnxruntime cuts a loop into one block of iterations per thread, before it runs any: its
// iterations are runners here, and the first one that a thread gets runs tasks until none is left.
class Claims {
 public:
  Claims(size_t count, size_t runners) : count_(count), units_(std::min(count, kMostUnits)), runners_(runners) {}

  // Runs tasks from the runner's own share on, so that a thread tends to get what it got before.
  template <class Task>
  void run(size_t runner, const Task& task) {
    if (is_done_.load(std::memory_order_relaxed)) return;
    bool is_first = true;
    size_t unit = runner * units_ / runners_;
    for (size_t i = 0; i < units_; ++i, unit = unit + 1 == units_ ? 0 : unit + 1) {
      std::atomic<bool>& is_claimed = is_claimed_[unit];
      if (is_claimed.load(std::memory_order_relaxed) || is_claimed.exchange(true, std::memory_order_relaxed)) continue;
      if (is_first) threads_.fetch_add(1, std::memory_order_relaxed);
      is_first = false;
      const size_t end = (unit + 1) * count_ / units_;
      for (size_t k = unit * count_ / units_; k < end; ++k) task(k);
    }
    is_done_.store(true, std::memory_order_relaxed);
  }

  // How many threads ran tasks: after its first runner, a thread finds none left.
  size_t threads() const { return threads_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kMostUnits = 256;  // tasks, or some tasks each, that are claimed together

  const size_t count_, units_, runners_;
  std::atomic<size_t> threads_{0};
  std::atomic<bool> is_done_{false};
  std::atomic<bool> is_claimed_[kMostUnits] = {};
};

// Runners that give each thread of a pool a block where `threads` were seen to share a loop, and one more where there
// is one: onnxruntime's blocks have ceil(runners / threads) iterations.
inline size_t runners_for(size_t count, size_t threads) { return count <= threads ? count : threads * (threads + 1); }

}  // namespace prosparse

#endif  // PROSPARSE_CLAIMS_H_
