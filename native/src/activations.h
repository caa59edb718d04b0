// Activations as the kernels read them, and the memory that a call works in.
#ifndef PROSPARSE_ACTIVATIONS_H_
#define PROSPARSE_ACTIVATIONS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "prosparse/kernels.h"

namespace prosparse {

constexpr size_t kBlock = 128;  // tokens that share one pass over the weights
static_assert(kBlock <= kMostSplit);
constexpr size_t kPieces = 16;  // parts of the gate
// Quantized kernels take magnitudes below this, so that no product with a scale overflows. A token beyond, or
// with a NaN, is computed by the scalar kernels, which follow IEEE 754.
constexpr float kLargest = kSplitMostX;
// Floats in a way of the L1 cache: rows as far apart as a multiple of it push each other out.
constexpr size_t kWay = 1024;

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

// Aligned memory that grows and is not cleared: pages that no call needs are never touched.
class Buffer {
 public:
  template <class T>
  T* get(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

 private:
  void* bytes(size_t size);
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

// Working memory of one call: bounded by kBlock tokens.
struct Scratch {
  Buffer x, q, q_dot, scale, starts, sums, grouped, split, split_sums, turned, z, active, a, h, y, work, tile_integers,
      tile_floats;
  size_t counts[kBlock];
  std::atomic<bool> is_odd[kBlock];  // to be computed by the scalar kernels or, in float formats, without tiles
  bool is_nan[kBlock];               // quantized formats: x has a NaN, so that all results are NaN
  std::thread::id ran_on[kPieces];   // by piece of the gate
  size_t threads = 1;                // the most that were seen to share a call
};

// Keeps the scratch of finished calls. Each concurrent call holds one of its own.
class ScratchPool {
 public:
  // One for all operators of a process: what one layer has just used is in the caches, and a model's layers do not hold
  // tens of megabytes each after a long prompt. Freed with the last operator.
  static std::shared_ptr<ScratchPool> shared();
  std::unique_ptr<Scratch> take();
  void give_back(std::unique_ptr<Scratch> scratch);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

// Prepares x, [count, cols], for the kernels of one format and a product with so many panels; count <= kBlock. Sets
// scratch.is_odd and is_nan.
Tokens prepare(const Kernels& kernels, Format format, size_t panels, const float* x, size_t count, size_t cols,
               const Parallel& parallel, Scratch& scratch);

// z for panels [first, last) and all tokens, odd ones by the scalar kernels or without tiles; in quantized formats not
// for those with a NaN.
void stream_all(const Kernels& kernels, const Panels& w, size_t first, size_t last, const Tokens& x,
                const Scratch& scratch, float* z, size_t z_stride);

// z[i] = z[i] / (1 + exp(-z[i])), within 8 ulp and 1e-37; a NaN and -Inf give NaN.
void silu(float* z, size_t count);

// Kernels::compact by magnitude: lists the neurons with !(|z[k]| <= threshold). There is one for all variants: with
// half of the neurons active it costs little beside their products.
size_t compact_magnitude(const float* z, size_t count, float threshold, int32_t* active, float* a);

struct Range {
  size_t begin, end;
};

// Part `index` of `total` cut into `pieces`, at multiples of `multiple`.
Range piece(size_t total, size_t pieces, size_t index, size_t multiple);

}  // namespace prosparse

#endif  // PROSPARSE_ACTIVATIONS_H_
