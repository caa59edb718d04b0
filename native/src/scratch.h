// The memory that a call works in.
#ifndef PROSPARSE_SCRATCH_H_
#define PROSPARSE_SCRATCH_H_

#include <algorithm>
#include <atomic>
#include <bitset>
#include <memory>
#include <mutex>
#include <vector>

#include "prosparse/kernels.h"

namespace prosparse {

constexpr size_t kBatchTokens = 128;  // tokens that share one pass over the weights
static_assert(kBatchTokens <= kMaxBf16x3Tokens && kBatchTokens <= kMaxBf16Tokens && kBatchTokens <= kMaxDotTokens);
using LeftOut = std::bitset<kMaxBf16Tokens>;  // whose batches are the largest
constexpr size_t kLeastPieces = 16;           // of gate_proj: keep a few threads busy to the end
constexpr size_t kMostPieces = 256;           // of any step

// Aligned memory that grows and is not cleared: pages that no call needs are never touched.
class Buffer {
 public:
  template <class T>
  T* get(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }
  size_t size() const { return size_; }  // bytes

 private:
  void* bytes(size_t size);
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

// Bounded by kBatchTokens tokens, at accuracy level 4 by kMaxBf16Tokens.
struct Scratch {
  Buffer x, q, q_dot, scale, starts, sums, grouped, bf16x3, amx_sums, transposed;  // x as the kernels read it
  Buffer z, active, a, h, y, work, tile_integers, tile_floats, lists, attention;
  size_t counts[kBatchTokens];                       // active neurons
  std::atomic<bool> needs_fallback[kMaxBf16Tokens];  // quantized formats: the scalar kernels; float formats: no AMX
  bool is_nan[kBatchTokens];                         // quantized formats: x has a NaN, so that all results are NaN
  size_t threads = 1;                                // the most seen to share a loop

  // Parts that threads claim one after another, so that all end at almost the same time: of work that is better not cut
  // for a single thread, and of gate_proj.
  size_t parts_to_claim() const { return threads == 1 ? 1 : std::min(4 * threads, kMostPieces); }
  size_t pieces() const { return std::max(kLeastPieces, parts_to_claim()); }

  // Which of the first `count` tokens need the fallback.
  LeftOut left_out(size_t count) const;
};

// Keeps the scratch of finished calls. Each concurrent call holds its own.
class ScratchPool {
 public:
  // One for all operators of a process: what one layer has just used is in the caches, and a model's layers do not hold
  // tens of megabytes each after a long prompt. Freed with the last operator.
  static std::shared_ptr<ScratchPool> shared();
  std::unique_ptr<Scratch> take();
  void give_back(std::unique_ptr<Scratch> scratch) noexcept;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace prosparse

#endif  // PROSPARSE_SCRATCH_H_
