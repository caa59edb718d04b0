// The whole operators, for each variant and format: against double precision, and their promises about order.
#include "exact_ffn.h"
#include "silu.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

void test_ffn(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens, bool gated,
              Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model + tokens));
  const Weights weights(k, format, d_model, d_ff, gated, activation, threshold, rng);
  const std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> y = run(k, weights.ffn, x);
  expect_ffn(k, weights, x, y);
  for (const unsigned seed : {2u, 5u, 16u}) {  // threads too
    CHECK(run(k, weights.ffn, x, seed, seed) == y,
          "%s %s: the order of tasks or the number of threads changes the bits", k.isa, format.name());
  }
  Ffn dense = weights.ffn;
  dense.dense = true;
  expect_ffn(k, weights, x, run(k, dense, x));
}

// Enough activations that tiles share their columns (tiled_ffn.cc): three of the tokens, and the order of tasks.
void test_wide(const Kernels& k, FfnFormat format) {
  constexpr size_t kModel = 2100, kTokens = 128;
  std::mt19937 rng(7);
  const Weights weights(k, format, kModel, 50 * kTileRows + 5, true, Activation::kRelu, 35.0f, rng);
  const std::vector<float> x = normals(rng, kTokens * kModel), y = run(k, weights.ffn, x);
  CHECK(run(k, weights.ffn, x, 1) == y, "%s: the order of tasks changes the bits of many wide tokens", k.isa);
  for (const std::ptrdiff_t t : {0, 62, 127}) {
    const auto part = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + t * std::ptrdiff_t{kModel},
                                all.begin() + (t + 1) * std::ptrdiff_t{kModel});
    };
    expect_ffn(k, weights, part(x), part(y));
  }
}

// Every neuron active, none active, or as it comes.
void test_extremes(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(d_model + d_ff));
  Weights weights(k, format, d_model, d_ff, true, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * d_model), bias = weights.b_gate;
  for (const float shift : {-1e4f, 0.0f, 1e4f}) {
    for (size_t r = 0; r < d_ff; ++r) weights.b_gate[r] = bias[r] + shift;
    weights.pack();
    const std::vector<float> y = run(k, weights.ffn, x);
    expect_ffn(k, weights, x, y);
    if (shift >= 0.0f) continue;
    for (size_t j = 0; j < y.size(); ++j)
      CHECK(y[j] == weights.b_down[j % d_model], "%s: no neuron is active, got %g", k.isa, static_cast<double>(y[j]));
  }
}

// z is exactly the threshold, the next float above, below, NaN: inactive, active, inactive, active.
void test_boundary(const Kernels& k) {
  std::mt19937 rng(1);
  const float t = 0.25f;
  Weights w(k, kFfnFormats[0], 1, 1, true, Activation::kRelu, t, rng);
  const float one = 1.0f;
  for (Stored* s : {&w.gate, &w.up, &w.down}) std::memcpy(s->data.data(), &one, 4);
  w.b_gate = w.b_up = w.b_down = {0.0f};
  w.pack();
  const float z[] = {t, std::nextafter(t, 1.0f), std::nextafter(t, 0.0f), NAN};
  for (size_t i = 0; i < 4; ++i) {
    const std::vector<float> y = run(k, w.ffn, {z[i]});  // z = x, v = x, y = z * x
    ++cases;
    if (i == 3) {
      CHECK(std::isnan(y[0]), "%s hides a NaN", k.isa);
    } else {
      CHECK(y[0] == (i == 1 ? z[i] * z[i] : 0.0f), "%s boundary case %zu: got %g", k.isa, i, static_cast<double>(y[0]));
    }
  }
}

// silu itself over all magnitudes, and the magnitude test: a large negative value counts, the boundary does not.
void test_silu(const Kernels& k) {
  std::vector<float> z = {0.0f,     -0.0f, 1e-40f, -1e-40f, 3e38f,   -3e38f,
                          INFINITY, 17.0f, -17.0f, -87.5f,  -103.0f, -130.0f};
  for (float m = 1e-30f; m < 1e30f; m *= 1.37f) z.insert(z.end(), {m, -m});
  std::vector<float> a = z;
  silu(a.data(), a.size());
  for (size_t i = 0; i < z.size(); ++i) {
    const double exact = z[i] == INFINITY ? INFINITY : z[i] / (1 + std::exp(-static_cast<double>(z[i])));
    ++cases;
    CHECK(static_cast<double>(a[i]) == exact || std::abs(a[i] - exact) <= 8 * 0x1p-24 * std::abs(exact) + 1e-37,
          "silu(%g): expected %.9g, got %.9g", static_cast<double>(z[i]), exact, static_cast<double>(a[i]));
  }
  float extreme[] = {NAN, -INFINITY};
  silu(extreme, 2);
  CHECK(std::isnan(extreme[0]) && std::isnan(extreme[1]), "silu: expected NaN for NaN and -Inf, got %g and %g",
        static_cast<double>(extreme[0]), static_cast<double>(extreme[1]));
  const float list[] = {0.25f, -0.25f, 0.2500001f, -0.2500001f, NAN, 0.0f};
  int32_t active[22];
  float values[22];
  const size_t found = compact_magnitude(list, 6, 0.25f, active, values);
  ++cases;
  CHECK(found == 3 && active[0] == 2 && active[1] == 3 && active[2] == 4, "magnitudes: %zu are active", found);

  std::mt19937 rng(1);
  Weights w(k, kFfnFormats[0], 1, 1, true, Activation::kSilu, 0.25f, rng);
  const float one = 1.0f;
  for (Stored* s : {&w.gate, &w.up, &w.down}) std::memcpy(s->data.data(), &one, 4);
  w.b_gate = w.b_up = w.b_down = {0.0f};
  w.pack();
  CHECK(run(k, w.ffn, {-1.0f})[0] > 0.26f, "%s: silu(-1) = -0.27 is beyond the threshold", k.isa);
  CHECK(run(k, w.ffn, {0.25f})[0] == 0.0f && run(k, w.ffn, {-3.0f})[0] == 0.0f, "%s: below the threshold", k.isa);
  CHECK(std::isnan(run(k, w.ffn, {NAN})[0]), "%s hides a NaN", k.isa);
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat f : kFfnFormats) {
      for (const size_t tokens : {0, 1, 2, 9, 33}) {
        if ((brief || f.mixed()) && tokens > 9) {  // of mixed formats, only the choice of kernels is new
          test_ffn(*k, f, 33, 100, tokens, true, Activation::kRelu, 1.5f);
          continue;
        }
        for (const Activation activation :
             {Activation::kRelu, Activation::kRelu2, Activation::kDrelu, Activation::kSilu}) {
          if (f.mixed() && activation == Activation::kSilu) continue;
          test_ffn(*k, f, 24, 100, tokens, true, activation, 0.0f);
          test_ffn(*k, f, 33, 100, tokens, true, activation, 1.5f);
        }
        test_ffn(*k, f, 24, 100, tokens, false, Activation::kRelu, 0.5f);
        const size_t wide = tokens == 1 ? 500 : tokens == 2 ? 512 : 600;  // RowOrder::kLane
        if (is_quantized(f.format)) test_ffn(*k, f, wide, 20, tokens, true, Activation::kRelu, 0.0f);
        if (tokens < 33) test_ffn(*k, f, 520, 267, tokens, false, Activation::kRelu2, 0.0f);
        test_ffn(*k, f, 1, 1, tokens, true, Activation::kRelu, 0.0f);
        if (f.mixed()) continue;
        test_linear(*k, f.format, 37, 129, tokens);
        test_linear(*k, f.format, 64, 64, tokens);
      }
      if (is_quantized(f.format) && !f.mixed()) {  // with AMX the last 12 tokens are a call of their own
        test_ffn(*k, f, 33, 60, 140, true, Activation::kRelu, 1.5f);
        test_linear(*k, f.format, 37, 64, 140);
        if (k != &kScalarKernels) test_linear(*k, f.format, 144, 1100, 33);  // 9 panels, 3 blocks of columns
      }
      test_extremes(*k, f, 70, 130, 1);
      test_extremes(*k, f, 70, 130, 5);
      if (brief) continue;
      if (k != &kScalarKernels) test_ffn(*k, f, 2100, 300, 3, true, Activation::kRelu, 20.0f);
      if (k != &kScalarKernels) test_ffn(*k, f, 2100, 300, 1, true, Activation::kRelu, 20.0f);  // down_proj in parts
      if (f.mixed()) continue;
      if (k != &kScalarKernels && !is_quantized(f.format)) test_wide(*k, f);
      if (k != &kScalarKernels) test_ffn(*k, f, 64, 160, 131, true, Activation::kRelu, 5.0f);
      if (k != &kScalarKernels) test_extremes(*k, f, 33, 11009, 1);
      if (k != &kScalarKernels) test_extremes(*k, f, 4097, 19, 2);
    }
    test_boundary(*k);
    test_silu(*k);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
