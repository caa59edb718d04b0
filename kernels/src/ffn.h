// The whole feed-forward block on any number of tokens, in terms of one ISA's kernels.
#ifndef PROSPARSE_FFN_H_
#define PROSPARSE_FFN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "prosparse/ffn_kernels.h"

namespace prosparse {

enum class Activation { kRelu, kRelu2, kDrelu };  // FATReLU is kRelu with a threshold

// Every matrix is [d_ff, d_model]: row k belongs to neuron k. The pointers are borrowed.
struct Ffn {
  const float* w_gate;  // null: not gated, the activation applies to up
  const float* b_gate;
  const float* w_up;
  const float* b_up;
  const float* w_down;
  const float* b_down;
  size_t d_model;
  size_t d_ff;
  Activation activation;
  float threshold;
};

// Runs task(argument, i) for every i in [0, count), in any order, on any threads; returns when all are done.
struct Parallel {
  void (*run)(void* context, size_t count, void (*task)(void* argument, size_t index), void* argument);
  void* context;
};

// Working memory for one call, at most kBlock tokens at a time: bounded by d_ff, not by tokens.
struct Scratch {
  std::unique_ptr<float[]> z, h;
  std::unique_ptr<int32_t[]> active;
  std::vector<size_t> counts;
};

// Keeps the scratch of finished calls. Each concurrent call holds one of its own.
class ScratchPool {
 public:
  explicit ScratchPool(size_t d_ff) : d_ff_(d_ff) {}
  std::unique_ptr<Scratch> take();
  void give_back(std::unique_ptr<Scratch> scratch);

 private:
  size_t d_ff_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

constexpr size_t kBlock = 16;  // tokens that share one pass over the gate

// y[t, :] = b_down + sum over active k of  a_k * v_k * w_down[k, :]            [tokens, d_model]
//
//   z_k = b_gate[k] + w_gate[k, :] . x[t, :]      (w_up, b_up where there is no gate)
//   k is active unless z_k <= threshold, so a NaN is active and stays visible
//   a_k = z_k, or z_k * z_k for kRelu2
//   v_k = b_up[k] + w_up[k, :] . x[t, :]; for kDrelu 0 if that is <= 0; 1 where there is no gate
//
// Rows of w_up and w_down of inactive neurons are not read: a NaN or Inf there is hidden, where the
// dense form gives 0 * Inf = NaN. y may not overlap x. The same bits for any number of threads, and
// for each token whatever the other tokens are. May throw std::bad_alloc from ScratchPool::take only.
void run_ffn(const FfnKernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
             const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_FFN_H_
