// Tasks on onnxruntime's threads.
#ifndef PROSPARSE_ORT_ORT_POOL_H_
#define PROSPARSE_ORT_ORT_POOL_H_

#include <atomic>
#include <memory>
#include <utility>

#include "../src/claims.h"
#include "../src/scratch.h"
#include "ort_abi.h"

namespace prosparse::ort {

struct OrtPool {
  const Api& api;
  const KernelContext* context;
  size_t& threads;            // the most that were seen to share a loop
  Status* failure = nullptr;  // the first one
  ~OrtPool() {
    if (failure != nullptr) api.ReleaseStatus(failure);
  }
};

// A loop's tasks, as onnxruntime's threads see them.
struct PoolLoop {
  Claims claims;
  void (*task)(void*, size_t);
  void* argument;
};

inline void run_on_pool(void* pool_pointer, size_t count, void (*task)(void*, size_t), void* argument) {
  OrtPool& pool = *static_cast<OrtPool*>(pool_pointer);
  const size_t runners = runners_for(count, pool.threads);
  PoolLoop loop{{count, runners}, task, argument};
  const auto run = [](void* pointer, size_t runner) {
    PoolLoop& of = *static_cast<PoolLoop*>(pointer);
    of.claims.run(runner, [&](size_t k) { of.task(of.argument, k); });
  };
  Status* const status = pool.api.KernelContext_ParallelFor(pool.context, run, runners, 0, &loop);
  pool.threads = std::max(pool.threads, loop.claims.threads());
  if (status == nullptr) return;
  if (pool.failure == nullptr) {
    pool.failure = status;
  } else {
    pool.api.ReleaseStatus(status);
  }
}

// What one call of a node's kernel works with: scratch, and onnxruntime's threads. `threads`: the node's, the most that
// were seen to share a loop.
class Call {
 public:
  Call(const Api& api, const KernelContext* context, ScratchPool& scratch_pool, std::atomic<size_t>& threads)
      : scratch_pool_(scratch_pool),
        threads_(threads),
        scratch_(scratch_pool.take()),
        pool_{api, context, scratch_->threads} {
    scratch_->threads = threads.load(std::memory_order_relaxed);
  }
  ~Call() {
    if (threads_.load(std::memory_order_relaxed) < scratch_->threads)
      threads_.store(scratch_->threads, std::memory_order_relaxed);
    scratch_pool_.give_back(std::move(scratch_));
  }
  Scratch& scratch() { return *scratch_; }
  Parallel parallel() { return {run_on_pool, &pool_}; }
  Status* take_failure() { return std::exchange(pool_.failure, nullptr); }

 private:
  ScratchPool& scratch_pool_;
  std::atomic<size_t>& threads_;
  std::unique_ptr<Scratch> scratch_;
  OrtPool pool_;
};

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_ORT_POOL_H_
