// The operators at accuracy level 4, for each variant: against double precision, and tokens that are out of range.
#include "exact_ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

std::vector<float> run_level_4(const Kernels& k, const Ffn& ffn, const std::vector<float>& x, unsigned seed = 0,
                               size_t threads = 1) {
  Scratch scratch;
  scratch.threads = threads;
  std::vector<float> y(x.size(), NAN);
  run_rounded_ffn(k, ffn, x.data(), x.size() / ffn.d_model, y.data(), {run_shuffled, &seed}, scratch);
  return y;
}

// Accuracy level 4, with rows that no token uses poisoned, and tokens that are NaN, infinite and large among the
// others.
void test_level_4(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens, bool gated,
                  Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model * 3 + tokens));
  Weights weights(k, format, d_model, d_ff, gated, activation, threshold, rng);
  std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> y = run_level_4(k, weights.ffn, x);
  expect_ffn(k, weights, x, y, true);
  for (const unsigned seed : {2u, 5u, 16u}) {
    CHECK(run_level_4(k, weights.ffn, x, seed, seed) == y,
          "%s %s level 4: the order of tasks or the number of threads changes the bits", k.isa, format.name());
  }
  Ffn other = weights.ffn;
  other.gate.side_by_side = !other.gate.side_by_side;
  other.gate.prefetch_distance = other.gate.prefetch_distance == 0 ? 512 : 0;
  CHECK(run_level_4(k, other, x) == y, "%s %s level 4 depends on the order of reading", k.isa, format.name());
  Ffn dense = weights.ffn;
  dense.dense = true;
  expect_ffn(k, weights, x, run_level_4(k, dense, x), true);
  if (tokens < 3) return;
  const size_t last = std::min<size_t>(tokens - 1, 4);
  std::vector<float> odd = x;
  odd[0] = NAN;
  odd[1 * d_model] = INFINITY;
  odd[last * d_model + d_model - 1] = -3e30f;
  const std::vector<float> mixed = run_level_4(k, weights.ffn, odd);
  const auto token = [&](const std::vector<float>& all, size_t t) {
    return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(t * d_model),
                              all.begin() + static_cast<std::ptrdiff_t>((t + 1) * d_model));
  };
  for (size_t t = 0; t < tokens; ++t) {
    if (t > 1 && t != last) {
      expect_ffn(k, weights, token(x, t), token(mixed, t), true);
    } else {
      const std::vector<float> own = token(mixed, t), alone = run(k, weights.ffn, token(odd, t));
      for (size_t j = 0; j < d_model; ++j) {
        CHECK(own[j] == alone[j] || (std::isnan(own[j]) && std::isnan(alone[j])),
              "%s %s level 4, token %zu out of range: expected %g, got %g", k.isa, format.name(), t,
              static_cast<double>(alone[j]), static_cast<double>(own[j]));
      }
    }
  }
}

// So many neurons that the number of threads decides how they are cut.
void test_level_4_threads(const Kernels& k, FfnFormat format, size_t d_ff, size_t tokens) {
  std::mt19937 rng(5);
  const Weights weights(k, format, 40, d_ff, true, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * 40), y = run_level_4(k, weights.ffn, x);
  for (const unsigned threads : {3u, 5u, 16u, 128u}) {
    CHECK(run_level_4(k, weights.ffn, x, threads, threads) == y, "%s %s level 4: %u threads change the bits", k.isa,
          format.name(), threads);
  }
}

// Every token uses every `every`-th neuron and no other.
void use_every(Weights& weights, size_t every) {
  for (size_t r = 0; r < weights.b_gate.size(); ++r) weights.b_gate[r] += r % every == 0 ? 1e3f : -1e3f;
  weights.pack();
}

// Rows that no token uses are never read: NaN and infinite scales there change nothing.
void test_level_4_unused(const Kernels& k, FfnFormat format, size_t tokens) {
  std::mt19937 rng(3);
  Weights weights(k, format, 70, 200, true, Activation::kRelu, 0.0f, rng);
  use_every(weights, 3);
  const std::vector<float> x = normals(rng, tokens * 70), y = run_level_4(k, weights.ffn, x);
  for (size_t r = 0; r < 200; ++r) {
    if (r % 3 == 0) continue;
    poison_row(weights.up, r, r % 3);
    poison_row(weights.down, r, r % 3);
  }
  weights.pack();
  CHECK(run_level_4(k, weights.ffn, x) == y, "%s %s level 4 reads rows that no token uses", k.isa, format.name());
}

// Few tokens with few active neurons are computed one by one, also where tiles take them otherwise.
void test_level_4_few(const Kernels& k, FfnFormat format, size_t tokens) {
  std::mt19937 rng(6);
  Weights weights(k, format, 70, 400, true, Activation::kRelu, 0.0f, rng);
  use_every(weights, 10);
  const std::vector<float> x = normals(rng, tokens * 70), y = run_level_4(k, weights.ffn, x);
  expect_ffn(k, weights, x, y, true);
  Scratch scratch;
  std::vector<float> one_by_one(x.size(), NAN);
  unsigned seed = 0;
  run_ffn_by_bytes(k, weights.ffn, x.data(), tokens, one_by_one.data(), {run_shuffled, &seed}, scratch);
  CHECK(y == one_by_one, "%s %s level 4: %zu tokens with few active neurons go another way", k.isa, format.name(),
        tokens);
}

// Sums of bytes that are as large as they can be: all weights the first or the last code, all activations one
// magnitude.
void test_level_4_largest(const Kernels& k, FfnFormat format, size_t d_model, size_t tokens) {
  std::mt19937 rng(4);
  for (const bool last : {false, true}) {
    for (const bool alternate : {false, true}) {
      Weights weights(k, format, d_model, 64, true, Activation::kRelu, 0.0f, rng);
      for (Stored* w : {&weights.gate, &weights.up, &weights.down}) w->use_one_code(last);
      weights.pack();
      std::vector<float> x(tokens * d_model);
      for (size_t i = 0; i < x.size(); ++i) x[i] = i / d_model % 2 == 0 || (alternate && i % 2 == 0) ? 1.0f : -1.0f;
      expect_ffn(k, weights, x, run_level_4(k, weights.ffn, x), true);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat f : kFfnFormats) {
      for (const size_t tokens : {0, 1, 2, 4, 9, 17, 33, 131, 259}) {
        if (!is_quantized(f.format)) continue;
        const FormatKernels& of = k->of[static_cast<size_t>(f.format)];
        const bool own_kernels = of.rounded.tokens != 0 || of.dot.tokens != 0;
        if (tokens > 17 && !own_kernels) continue;             // those of level 0: several_tokens_test
        if (tokens > 131 && of.rounded.tokens == 0) continue;  // tiles have batches of 256
        if (brief && tokens != 1 && tokens != 4 && tokens != 33) continue;
        for (const Activation activation :
             {Activation::kRelu, Activation::kRelu2, Activation::kDrelu, Activation::kSilu}) {
          if (brief && activation != Activation::kRelu && activation != Activation::kSilu) continue;
          test_level_4(*k, f, 33, 150, tokens, true, activation, 1.5f);
        }
        test_level_4(*k, f, brief ? 140 : 300, brief ? 130 : 267, tokens, true, Activation::kRelu, 0.0f);
        test_level_4(*k, f, 24, 100, tokens, false, Activation::kRelu2, 0.5f);
        const size_t wide = tokens == 1 ? 512 : tokens == 4 ? 600 : 500;  // RowOrder::kLane
        test_level_4(*k, f, wide, 20, tokens, true, Activation::kRelu, 0.0f);
        test_level_4(*k, f, 1, 1, tokens, true, Activation::kRelu, 0.0f);
        if (f.mixed()) continue;
        test_linear(*k, f.format, 37, 129, tokens, true);
        test_linear(*k, f.format, 80, 300, tokens, true);
      }
      if (!is_quantized(f.format)) continue;
      test_level_4_threads(*k, f, 1100, 33);
      if (k != &kScalarKernels)
        test_level_4(*k, f, 1100, 144, 33, true, Activation::kRelu, 0.0f);  // 9 panels, 3 blocks
      if (k != &kScalarKernels && !f.mixed()) test_linear(*k, f.format, 144, 1100, 33, true);
      if (brief && k->of[static_cast<size_t>(f.format)].rounded.tokens != 0) {
        test_level_4(*k, f, 33, 60, 259, true, Activation::kRelu, 1.5f);
        test_linear(*k, f.format, 37, 64, 259, true);
      }
      const DotKernels& dot = dot_kernels(*k, f.format, &FormatKernels::dot);
      for (const size_t tokens : {8, 11}) {
        if (tokens < batch_tokens(dot)) test_level_4_few(*k, f, tokens);
      }
      if (f.format == Format::kI8) test_level_4_threads(*k, f, 43000, 33);  // more blocks of neurons than pieces
      for (const size_t tokens : {34, 35}) test_linear(*k, f.format, 80, 129, tokens, true);  // last groups of any size
      for (const size_t tokens : {16, 40}) {  // token by token, and in blocks of neurons
        test_level_4_unused(*k, f, tokens);
        test_level_4_largest(*k, f, 96, tokens);
        if (tokens == 16) test_level_4_largest(*k, f, 512, 3);
      }
    }
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
