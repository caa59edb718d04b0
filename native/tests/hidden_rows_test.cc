// A row of NaN or infinities that is active for some tokens only shows in those, whatever the others share with them.
// Of quantized formats only the latter holds: their scales are taken to be finite.
#include "random_ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// `weights` with one row of up_proj and of down_proj poisoned.
void poison(const Weights& weights, size_t row, size_t which, Weights& broken) {
  const auto copy = [](const Stored& from, Stored& to) { to.data = from.data, to.scales = from.scales; };
  copy(weights.gate, broken.gate);
  copy(weights.up, broken.up);
  copy(weights.down, broken.down);
  broken.b_gate = weights.b_gate;
  broken.b_up = weights.b_up;
  broken.b_down = weights.b_down;
  poison_row(broken.up, row, which);
  poison_row(broken.down, row, which);
  broken.pack();
}

void test_hidden_rows(const Kernels& k, FfnFormat format, size_t d_model, size_t tokens, bool gated) {
  static const char* const kinds[] = {"NaN", "+Inf", "-Inf"};
  std::mt19937 rng(static_cast<unsigned>(tokens));
  const size_t d_ff = 130;
  const bool rounds = is_quantized(format.down) && &k != &kScalarKernels;
  const Weights weights(k, format, d_model, d_ff, gated, Activation::kRelu, 0.0f, rng);
  Weights broken(k, format, d_model, d_ff, gated, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * d_model), expected_y = run(k, weights.ffn, x);
  for (const size_t row : {size_t{0}, size_t{64}, d_ff - 1}) {
    for (size_t which = 0; which < 3; ++which) {
      poison(weights, row, which, broken);
      const std::vector<float> y = run(k, broken.ffn, x);
      size_t shown = 0;
      for (size_t t = 0; t < tokens; ++t) {
        double bound = 0.0;
        const double z = row_sum(weights.gate, row, &x[t * d_model], weights.b_gate[row], rounds, &bound);
        shown += z > bound;
        for (size_t j = 0; j < d_model; ++j) {
          ++cases;
          const float actual = y[t * d_model + j], expected = expected_y[t * d_model + j];
          if (z > bound && !is_quantized(format.down)) {
            CHECK(!std::isfinite(actual), "%s %s hides a %s of an active row", k.isa, format.name(), kinds[which]);
          }
          if (z < -bound) {
            CHECK(actual == expected, "%s %s shows a %s of a row that is not active: %g", k.isa, format.name(),
                  kinds[which], static_cast<double>(actual));
          }
        }
      }
      CHECK(tokens < 9 || (shown != 0 && shown != tokens), "row %zu tests nothing", row);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat format : kFfnFormats) {
      for (const bool gated : {true, false}) {
        for (const size_t tokens : {1, 3, 14, 67}) {
          if (tokens > 14 && k->of[static_cast<size_t>(format.format)].bf16x3_tokens == 0) continue;
          if (k != &kScalarKernels || tokens == 3) test_hidden_rows(*k, format, 96, tokens, gated);
          if (is_quantized(format.format) && gated && tokens == 14) test_hidden_rows(*k, format, 512, tokens, gated);
        }
      }
    }
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
