// What a model file holds, activations and results may begin anywhere, and the bits stay what they are.
#include "random_ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;
constexpr float kUntouched = -7.0f;

// `count` floats that begin `offset` floats after a multiple of 64 bytes, with one before and one behind.
class Placed {
 public:
  Placed(size_t count, size_t offset) : count_(count), memory_(count + 2 * kLanes + 2, kUntouched) {
    const size_t address = reinterpret_cast<uintptr_t>(memory_.data());
    begin_ = (round_up(address + sizeof(float), kLineBytes) - address) / sizeof(float) + offset;
  }
  Placed(const std::vector<float>& values, size_t offset) : Placed(values.size(), offset) {
    std::copy(values.begin(), values.end(), data());
  }
  float* data() { return memory_.data() + begin_; }
  bool keeps_its_ends() const { return memory_[begin_ - 1] == kUntouched && memory_[begin_ + count_] == kUntouched; }
  std::vector<float> values() { return {data(), data() + count_}; }

 private:
  size_t count_, begin_;
  std::vector<float> memory_;
};

// `run(x, y)` has the same bits wherever x and y begin. Both are as long as the kernels read and write them: with other
// numbers of columns they would be copied to memory that is aligned.
template <class Run>
void expect_same_bits(const Kernels& k, FfnFormat format, const char* what, const std::vector<float>& x, size_t results,
                      const Run& run) {
  Placed aligned_x(x, 0), aligned_y(results, 0);
  run(aligned_x.data(), aligned_y.data());
  const std::vector<float> expected = aligned_y.values();
  CHECK(std::count(expected.begin(), expected.end(), kUntouched) == 0, "%s: not all of y was written", what);
  for (const size_t x_offset : {0, 1, 3}) {
    for (const size_t y_offset : {0, 1, 2}) {
      Placed odd_x(x, x_offset), odd_y(results, y_offset);
      run(odd_x.data(), odd_y.data());
      ++cases;
      CHECK(odd_y.values() == expected, "%s %s %s: x %zu and y %zu bytes further change the bits", k.isa, format.name(),
            what, 4 * x_offset, 4 * y_offset);
      CHECK(odd_y.keeps_its_ends(), "%s %s %s: wrote beyond y", k.isa, format.name(), what);
    }
  }
}

void test_ffn(const Kernels& k, FfnFormat format, bool gated, size_t d_model, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(d_model + tokens));
  const Weights weights(k, format, d_model, 90, gated, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * d_model);
  expect_same_bits(k, format, gated ? "gated" : "ungated", x, x.size(), [&](const float* from, float* to) {
    Scratch scratch;
    unsigned seed = 0;
    run_ffn(k, weights.ffn, from, tokens, to, {run_shuffled, &seed}, scratch);
  });
}

void test_linear(const Kernels& k, Format format, size_t cols, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(cols + tokens));
  const size_t rows = 6 * kLanes;
  const Stored w(format, rows, cols, rng);
  const std::vector<float> bias = normals(rng, rows), x = normals(rng, tokens * cols);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 2);
  expect_same_bits(k, {format, format}, "linear", x, tokens * rows, [&](const float* from, float* to) {
    Scratch scratch;
    unsigned seed = 0;
    run_linear(k, panels, from, tokens, cols, to, {run_shuffled, &seed}, scratch);
  });
}

// Weights, scales and biases one byte further.
void test_file(const Kernels& k, FfnFormat format) {
  std::mt19937 rng(4);
  Weights weights(k, format, 70, 90, true, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, 3 * 70), expected = run(k, weights.ffn, x);
  std::vector<uint8_t> copies[9];
  const auto shifted = [&](const auto& from, size_t place) {
    const size_t bytes = from.size() * sizeof(from[0]);
    copies[place].resize(bytes + 1);
    std::memcpy(copies[place].data() + 1, from.data(), bytes);
    return static_cast<const void*>(copies[place].data() + 1);
  };
  Stored* const matrices[] = {&weights.gate, &weights.up, &weights.down};
  for (size_t m = 0; m < 3; ++m) {
    Matrix& matrix = matrices[m]->matrix;
    matrix.data = shifted(matrices[m]->data, m);
    if (matrix.scales != nullptr) matrix.scales = shifted(matrices[m]->scales, 3 + m);
  }
  weights.arena = std::make_unique<Arena>(panels_bytes(weights.gate.matrix) + rows_bytes(weights.up.matrix) +
                                          rows_bytes(weights.down.matrix));
  weights.ffn.gate = pack_panels(weights.gate.matrix, shifted(weights.b_gate, 6), *weights.arena, 2);
  weights.ffn.up = pack_rows(weights.up.matrix, shifted(weights.b_up, 7), k.up_order, *weights.arena, 2);
  weights.ffn.down = pack_rows(weights.down.matrix, shifted(weights.b_down, 8), RowOrder::kAxpy, *weights.arena, 2);
  ++cases;
  CHECK(run(k, weights.ffn, x) == expected, "%s %s: a file's weights at odd addresses change the bits", k.isa,
        format.name());
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat format : kFfnFormats) {
      test_file(*k, format);
      for (const size_t cols : {128, 256, 1024}) {
        for (const size_t tokens : {1, 2, 3, 9}) {
          if ((brief || k == &kScalarKernels) && cols * tokens > 512) continue;
          for (const bool gated : {true, false}) test_ffn(*k, format, gated, cols, tokens);
          if (!format.mixed()) test_linear(*k, format.format, cols, tokens);
        }
      }
      if (is_quantized(format.format)) test_ffn(*k, format, true, 512, 2);
    }
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
