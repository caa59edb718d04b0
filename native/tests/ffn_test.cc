// The whole operators, for each variant and format: against double precision, and their promises about order.
#include "random_ffn.h"
#include "rounded_ffn.h"
#include "silu.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// The definition in ffn.h, in double precision, with a running bound on the rounding.
void expect_ffn(const Kernels& k, const Weights& w, const std::vector<float>& x, const std::vector<float>& y,
                bool level_4 = false) {
  const Ffn& f = w.ffn;
  const bool rounds = is_quantized(f.down.format) && &k != &kScalarKernels;
  for (size_t t = 0; t < x.size() / f.d_model; ++t) {
    std::vector<double> h(f.d_ff), h_error(f.d_ff);
    for (size_t r = 0; r < f.d_ff; ++r) {
      double z_error = 0.0;
      const double z = row_sum(w.gate, r, &x[t * f.d_model], w.b_gate[r], rounds, &z_error, level_4);
      // Near the threshold either side is right: what the neuron adds enters the bound instead.
      const bool uncertain = std::abs(z - f.threshold) <= z_error;
      double a = z > f.threshold ? z : 0.0;
      double a_error = uncertain ? std::abs(z) + z_error : (a == 0.0 ? 0.0 : z_error);
      if (f.activation == Activation::kSilu) {  // its slope is 1.1 at most; 8 units for exp, sum and quotient
        a = z / (1 + std::exp(-z));
        a_error = 1.1 * z_error + 8 * 0x1p-24 * std::abs(a);
        const bool near = std::abs(std::abs(a) - f.threshold) <= a_error;
        if (std::abs(a) <= f.threshold) a = 0.0;
        a_error = near ? f.threshold + 2 * a_error : (a == 0.0 ? 0.0 : a_error);
      }
      if (f.activation == Activation::kRelu2) {
        a_error = 2 * std::abs(a) * a_error + a_error * a_error + gamma_bound(1) * a * a;
        a *= a;
      }
      double v = 1.0, v_error = 0.0;
      if (f.gated) {
        v = row_sum(w.up, r, &x[t * f.d_model], w.b_up[r], rounds, &v_error, level_4);
        if (f.activation == Activation::kDrelu) v = std::max(v, 0.0);  // 1-Lipschitz: the error stays
      }
      h[r] = a * v;
      h_error[r] = a_error * (std::abs(v) + v_error) + std::abs(a) * v_error + gamma_bound(1) * std::abs(h[r]);
    }
    if (level_4) {
      std::vector<double> largest(f.d_ff);
      for (size_t r = 0; r < f.d_ff; ++r) largest[r] = std::abs(h[r]) + h_error[r];
      const std::vector<double> more = level_4_errors(largest.data(), f.d_ff);
      for (size_t r = 0; r < f.d_ff; ++r) h_error[r] += more[r];
    }
    for (size_t j = 0; j < f.d_model; ++j) {
      double sum = w.b_down[j], bound = gamma_bound(f.d_ff + 6) * std::abs(sum), largest = 1e-30;
      for (size_t r = 0; r < f.d_ff && rounds; ++r) {  // over the whole list: no chunk's is larger
        largest = std::max(largest, (std::abs(h[r]) + h_error[r]) * std::abs(w.down.scale(r, j)));
      }
      for (size_t r = 0; r < f.d_ff; ++r) {
        const double d = w.down.at(r, j);
        sum += h[r] * d;
        bound += std::abs(d) * (h_error[r] + gamma_bound(f.d_ff + 6) * (std::abs(h[r]) + h_error[r]));
        if (rounds && (h[r] != 0.0 || h_error[r] != 0.0))
          bound += 0.52 * largest / kSteps * w.down.integers[r * f.d_model + j];
      }
      ++cases;
      const double actual = y[t * f.d_model + j];
      CHECK(std::abs(actual - sum) <= bound * 1.0001, "%s %s token %zu column %zu: expected %.9g, got %.9g, bound %.3g",
            k.isa, w.format().name(), t, j, sum, actual, bound);
    }
  }
}

void test_ffn(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens, bool gated,
              Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model + tokens));
  const Weights weights(format, d_model, d_ff, gated, activation, threshold, rng);
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
  const Weights weights(format, kModel, 50 * kTileRows + 5, true, Activation::kRelu, 35.0f, rng);
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
  Weights weights(format, d_model, d_ff, gated, activation, threshold, rng);
  std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> y = run_level_4(k, weights.ffn, x);
  expect_ffn(k, weights, x, y, true);
  for (const unsigned seed : {2u, 5u, 16u}) {
    CHECK(run_level_4(k, weights.ffn, x, seed, seed) == y,
          "%s %s level 4: the order of tasks or the number of threads changes the bits", k.isa, format.name());
  }
  Ffn dense = weights.ffn;
  dense.dense = true;
  expect_ffn(k, weights, x, run_level_4(k, dense, x), true);
  if (tokens < 5) return;
  std::vector<float> odd = x;
  odd[1 * d_model] = NAN;
  odd[2 * d_model] = INFINITY;
  odd[4 * d_model + d_model - 1] = -3e30f;
  const std::vector<float> mixed = run_level_4(k, weights.ffn, odd);
  const auto token = [&](const std::vector<float>& all, size_t t) {
    return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(t * d_model),
                              all.begin() + static_cast<std::ptrdiff_t>((t + 1) * d_model));
  };
  for (size_t t = 0; t < tokens; ++t) {
    if (t != 1 && t != 2 && t != 4) {
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

// Rows that no token uses are never read: NaN and infinite scales there change nothing.
void test_level_4_unused(const Kernels& k, FfnFormat format) {
  std::mt19937 rng(3);
  Weights weights(format, 70, 200, true, Activation::kRelu, 0.0f, rng);
  for (size_t r = 0; r < 200; ++r) weights.b_gate[r] += r % 3 == 0 ? 1e3f : -1e3f;
  weights.pack();
  const std::vector<float> x = normals(rng, 20 * 70), y = run_level_4(k, weights.ffn, x);
  for (size_t r = 0; r < 200; ++r) {
    if (r % 3 == 0) continue;
    poison_row(weights.up, r, r % 3);
    poison_row(weights.down, r, r % 3);
  }
  weights.pack();
  CHECK(run_level_4(k, weights.ffn, x) == y, "%s %s level 4 reads rows that no token uses", k.isa, format.name());
}

// Every neuron active, none active, or as it comes.
void test_extremes(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(d_model + d_ff));
  Weights weights(format, d_model, d_ff, true, Activation::kRelu, 0.0f, rng);
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
  Weights w(kFfnFormats[0], 1, 1, true, Activation::kRelu, t, rng);
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
  Weights w(kFfnFormats[0], 1, 1, true, Activation::kSilu, 0.25f, rng);
  const float one = 1.0f;
  for (Stored* s : {&w.gate, &w.up, &w.down}) std::memcpy(s->data.data(), &one, 4);
  w.b_gate = w.b_up = w.b_down = {0.0f};
  w.pack();
  CHECK(run(k, w.ffn, {-1.0f})[0] > 0.26f, "%s: silu(-1) = -0.27 is beyond the threshold", k.isa);
  CHECK(run(k, w.ffn, {0.25f})[0] == 0.0f && run(k, w.ffn, {-3.0f})[0] == 0.0f, "%s: below the threshold", k.isa);
  CHECK(std::isnan(run(k, w.ffn, {NAN})[0]), "%s hides a NaN", k.isa);
}

void test_linear(const Kernels& k, Format format, size_t rows, size_t cols, size_t tokens, bool level_4 = false) {
  std::mt19937 rng(static_cast<unsigned>(rows + tokens));
  const Stored w(format, rows, cols, rng);
  const std::vector<float> bias = normals(rng, rows), x = normals(rng, tokens * cols);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 3);
  std::vector<float> y(tokens * rows, NAN), again(y);
  for (unsigned seed : {0u, 5u}) {
    Scratch scratch;
    (level_4 ? run_rounded_linear : run_linear)(k, panels, x.data(), tokens, cols, (seed ? again : y).data(),
                                                {run_shuffled, &seed}, scratch);
  }
  CHECK(y == again, "%s linear: the order of tasks changes the bits", k.isa);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double bound = 0.0;
      const double exact =
          row_sum(w, r, &x[t * cols], bias[r], is_quantized(format) && &k != &kScalarKernels, &bound, level_4);
      ++cases;
      CHECK(std::abs(y[t * rows + r] - exact) <= bound, "%s linear: expected %.9g, got %.9g, bound %.3g", k.isa, exact,
            static_cast<double>(y[t * rows + r]), bound);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat f : kFfnFormats) {
      for (const size_t tokens : {0, 1, 2, 9, 33}) {
        if ((brief || f.mixed()) && tokens > 9) continue;  // of mixed formats, only the choice of kernels is new
        for (const Activation activation :
             {Activation::kRelu, Activation::kRelu2, Activation::kDrelu, Activation::kSilu}) {
          if (f.mixed() && activation == Activation::kSilu) continue;
          test_ffn(*k, f, 24, 100, tokens, true, activation, 0.0f);
          test_ffn(*k, f, 33, 100, tokens, true, activation, 1.5f);
        }
        test_ffn(*k, f, 24, 100, tokens, false, Activation::kRelu, 0.5f);
        test_ffn(*k, f, 520, 267, tokens, false, Activation::kRelu2, 0.0f);
        test_ffn(*k, f, 1, 1, tokens, true, Activation::kRelu, 0.0f);
        if (f.mixed()) continue;
        test_linear(*k, f.format, 37, 129, tokens);
        test_linear(*k, f.format, 64, 64, tokens);
      }
      for (const size_t tokens : {0, 1, 9, 17, 33, 131}) {
        if (!is_quantized(f.format) || (brief && tokens > 17)) continue;
        for (const Activation activation :
             {Activation::kRelu, Activation::kRelu2, Activation::kDrelu, Activation::kSilu}) {
          test_level_4(*k, f, 33, 150, tokens, true, activation, 1.5f);
        }
        test_level_4(*k, f, 300, 267, tokens, true, Activation::kRelu, 0.0f);
        test_level_4(*k, f, 24, 100, tokens, false, Activation::kRelu2, 0.5f);
        test_level_4(*k, f, 1, 1, tokens, true, Activation::kRelu, 0.0f);
        if (f.mixed()) continue;
        test_linear(*k, f.format, 37, 129, tokens, true);
        test_linear(*k, f.format, 80, 300, tokens, true);
      }
      if (is_quantized(f.format)) test_level_4_unused(*k, f);
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
