// An FFN with random weights, and a stand-in for onnxruntime's threads.
#ifndef PROSPARSE_TESTS_RANDOM_FFN_H_
#define PROSPARSE_TESTS_RANDOM_FFN_H_

#include <memory>

#include "ffn.h"
#include "matrices.h"

namespace prosparse::testing {

// A stand-in for a thread pool: runs the tasks in an order that depends on `seed`, 0 for in order.
inline void run_shuffled(void* seed, size_t count, void (*task)(void*, size_t), void* argument) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = i;
  std::mt19937 rng(*static_cast<unsigned*>(seed));
  if (*static_cast<unsigned*>(seed) != 0) std::shuffle(order.begin(), order.end(), rng);
  for (const size_t i : order) task(argument, i);
}

struct Weights {  // of one FFN
  Stored gate, up, down;
  std::vector<float> b_gate, b_up, b_down;
  RowOrder up_order;
  std::unique_ptr<Arena> arena;
  Ffn ffn{};
  FfnFormat format() const { return {gate.matrix.format, down.matrix.format}; }
  Weights(const Kernels& k, FfnFormat f, size_t d_model, size_t d_ff, bool gated, Activation activation,
          float threshold, std::mt19937& rng)
      : gate(f.format, d_ff, d_model, rng),
        up(f.format, d_ff, d_model, rng),
        down(f.down, d_ff, d_model, rng),
        b_gate(normals(rng, d_ff)),
        b_up(normals(rng, d_ff)),
        b_down(normals(rng, d_model)),
        up_order(k.up_order) {
    ffn.gated = gated;
    ffn.d_model = d_model;
    ffn.d_ff = d_ff;
    ffn.activation = activation;
    ffn.threshold = threshold;
    pack();
  }
  void pack() {
    arena = std::make_unique<Arena>(panels_bytes(gate.matrix) + rows_bytes(up.matrix) + rows_bytes(down.matrix));
    ffn.gate = pack_panels(gate.matrix, b_gate.data(), *arena, 2);
    ffn.up = pack_rows(up.matrix, b_up.data(), up_order, *arena, 2);
    ffn.down = pack_rows(down.matrix, b_down.data(), RowOrder::kAxpy, *arena, 2);
  }
};

// `threads`: how many threads count as sharing a call, by which the work of one token is cut.
inline std::vector<float> run(const Kernels& k, const Ffn& ffn, const std::vector<float>& x, unsigned seed = 0,
                              size_t threads = 1) {
  Scratch scratch;
  scratch.threads = threads;
  std::vector<float> y(x.size(), NAN);
  run_ffn(k, ffn, x.data(), x.size() / ffn.d_model, y.data(), {run_shuffled, &seed}, scratch);
  return y;
}

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_RANDOM_FFN_H_
