// NaN, infinities and overflow in activations, for each variant and format: the results that IEEE 754 gives to the
// definition in ffn.h, and for tokens beside them the bits that they have without such neighbors.
#include "ieee.h"
#include "quantize_activations.h"
#include "random_ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;
size_t seen[5];  // by Kind, of what was expected

struct Extreme {
  const char* name;
  void (*change)(float* x, size_t count);
};

void scale(float* x, size_t count, float factor) {
  for (size_t c = 0; c < count; ++c) x[c] *= factor;
}

const Extreme kExtremes[] = {
    {"a NaN", [](float* x, size_t) { x[5] = NAN; }},
    {"+Inf", [](float* x, size_t) { x[5] = INFINITY; }},
    {"-Inf", [](float* x, size_t count) { x[count - 1] = -INFINITY; }},
    {"both infinities", [](float* x, size_t) { x[3] = INFINITY, x[40] = -INFINITY; }},
    {"a product that overflows", [](float* x, size_t) { x[7] = 3.4e38f; }},
    // From here on x is below kFallbackFrom, and what is computed of it is not.
    {"a product beyond kFallbackFrom", [](float* x, size_t count) { scale(x, count, 1e16f); }},
    {"a product of activations that overflows", [](float* x, size_t count) { scale(x, count, 1e20f); }},
    {"activations beyond kFallbackFrom", [](float* x, size_t count) { scale(x, count, 1e29f); }},
};

bool is_in_range(const float* x, size_t count) {
  return std::all_of(x, x + count, [](float value) { return std::abs(value) < kFallbackFrom; });  // false for a NaN
}

Ieee row(const Stored& w, size_t r, const float* x, const std::vector<double>& steps, float bias) {
  Sum sum;
  sum.add(bias, exactly(1.0f));
  for (size_t c = 0; c < steps.size(); ++c) {
    sum.add(w.at(r, c), exactly(x[c]));
    sum.loosen(std::abs(w.at(r, c)) * steps[c]);
  }
  return sum.result();
}

// Whether a neuron is active (it may be, near the threshold), and with which activation.
bool activate(Activation activation, double t, Ieee* a) {
  if (activation == Activation::kSilu) {
    if (a->kind == Kind::kMinus) a->kind = Kind::kNan;
    if (a->kind != Kind::kNumber) return true;
    const double z = a->value, value = z / (1 + std::exp(-z));
    *a = stored(value, 1.1 * a->bound + 8 * kHalfUlp * std::abs(value));  // as in ffn_test.cc
    return a->kind != Kind::kNumber || std::abs(value) + a->bound > t;
  }
  if (a->kind == Kind::kMinus) return false;
  if (a->kind == Kind::kNumber) {
    if (a->value + a->bound <= t) return false;
    if (a->value - a->bound <= t) a->bound += std::abs(a->value);
  }
  if (activation == Activation::kRelu2) *a = product(*a, *a);
  return true;
}

std::vector<Ieee> expect_ffn(const Weights& w, const float* x, bool rounds) {
  const Ffn& f = w.ffn;
  const std::vector<double> steps = half_steps(x, f.d_model, rounds && is_in_range(x, f.d_model));
  std::vector<size_t> active;
  std::vector<Ieee> h;
  for (size_t r = 0; r < f.d_ff; ++r) {
    Ieee a = row(w.gate, r, x, steps, w.b_gate[r]);
    if (!activate(f.activation, f.threshold, &a)) continue;
    if (f.gated) {
      Ieee v = row(w.up, r, x, steps, w.b_up[r]);
      if (f.activation == Activation::kDrelu) {
        if (v.kind == Kind::kMinus) v = {};
        if (v.kind == Kind::kNumber && v.value <= 0.0) v = {Kind::kNumber, 0.0, std::max(0.0, v.value + v.bound)};
      }
      a = product(v, a);
    }
    active.push_back(r);
    h.push_back(a);
  }
  std::vector<Ieee> y(f.d_model);
  for (size_t j = 0; j < f.d_model; ++j) {
    Sum sum;
    sum.add(w.b_down[j], exactly(1.0f));
    double largest = 1e-30;
    for (size_t i = 0; i < active.size() && rounds; ++i)
      largest = std::max(largest, (std::abs(h[i].value) + h[i].bound) * std::abs(w.down.scale(active[i], j)));
    for (size_t i = 0; i < active.size(); ++i) {
      sum.add(w.down.at(active[i], j), h[i]);
      if (rounds) sum.loosen(0.52 * largest / kSteps * w.down.integers[active[i] * f.d_model + j]);
    }
    y[j] = sum.result();
  }
  return y;
}

void expect_token(const Kernels& k, const char* format, const char* what, const float* y,
                  const std::vector<Ieee>& expected) {
  static const char* const kinds[] = {"a number", "+Inf", "-Inf", "NaN", "anything"};
  for (size_t j = 0; j < expected.size(); ++j) {
    const Ieee& e = expected[j];
    ++cases;
    ++seen[static_cast<size_t>(e.kind)];
    CHECK(agrees(y[j], e), "%s %s %s, result %zu: expected %s %.9g within %.3g, got %.9g", k.isa, format, what, j,
          kinds[static_cast<size_t>(e.kind)], e.value, e.bound, static_cast<double>(y[j]));
  }
}

// Every second token is extreme, from the first on. `apart`: tokens have the same bits whatever their neighbors.
template <class Run, class Expected>
void test_tokens(const Kernels& k, FfnFormat format, size_t d_in, size_t d_out, size_t tokens, bool apart,
                 std::mt19937& rng, const Run& run_all, const Expected& expected) {
  const std::vector<float> in_range_x = normals(rng, tokens * d_in), in_range_y = run_all(k, in_range_x);
  for (const Extreme& extreme : kExtremes) {
    std::vector<float> x = in_range_x;
    for (size_t t = 0; t < tokens; t += 2) extreme.change(&x[t * d_in], d_in);
    const std::vector<float> y = run_all(k, x), reference = run_all(kScalarKernels, x);
    for (size_t t = 0; t < tokens; ++t) {
      if (t % 2 == 0 || !apart) {
        expect_token(k, format.name(), extreme.name, &y[t * d_out], expected(&x[t * d_in]));
        if (!is_quantized(format.down) || is_in_range(&x[t * d_in], d_in)) continue;
        const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
        CHECK(std::equal(&y[t * d_out], &y[t * d_out] + d_out, &reference[t * d_out], same),
              "%s %s %s is not the scalar variant's", k.isa, format.name(), extreme.name);
      } else {
        ++cases;
        CHECK(std::equal(&y[t * d_out], &y[t * d_out] + d_out, &in_range_y[t * d_out]),
              "%s %s %s changes the bits of token %zu of %zu beside it", k.isa, format.name(), extreme.name, t, tokens);
      }
    }
  }
}

void test_ffn(const Kernels& k, FfnFormat format, size_t d_model, size_t d_ff, size_t tokens, bool gated,
              Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model + d_ff + tokens));
  const Weights weights(k, format, d_model, d_ff, gated, activation, threshold, rng);
  const bool rounds = is_quantized(format.down) && &k != &kScalarKernels;
  // Which neurons up_proj computes for all tokens of a float format depends on how many of them it is active for.
  const bool apart = tokens <= 4 || !gated || is_quantized(format.down);
  test_tokens(
      k, format, d_model, d_model, tokens, apart, rng,
      [&](const Kernels& by, const std::vector<float>& x) { return run(by, weights.ffn, x); },
      [&](const float* x) { return expect_ffn(weights, x, rounds); });
}

void test_linear(const Kernels& k, Format format, size_t rows, size_t cols, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(rows + cols + tokens));
  const Stored w(format, rows, cols, rng);
  const std::vector<float> bias = normals(rng, rows);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 2);
  const auto run_all = [&](const Kernels& by, const std::vector<float>& x) {
    Scratch scratch;
    unsigned seed = 0;
    std::vector<float> y(tokens * rows);
    run_linear(by, panels, x.data(), tokens, cols, y.data(), {run_shuffled, &seed}, scratch);
    return y;
  };
  test_tokens(k, {format, format}, cols, rows, tokens, true, rng, run_all, [&](const float* x) {
    const std::vector<double> steps =
        half_steps(x, cols, is_quantized(format) && &k != &kScalarKernels && is_in_range(x, cols));
    std::vector<Ieee> y(rows);
    for (size_t r = 0; r < rows; ++r) y[r] = row(w, r, x, steps, bias[r]);
    return y;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const FfnFormat format : kFfnFormats) {
      std::fill(std::begin(seen), std::end(seen), size_t{0});
      for (const size_t tokens : {1, 4, 14}) {
        if (tokens > 4 && (brief || format.mixed() || k == &kScalarKernels)) continue;
        for (const size_t d_ff : {1, 3, 130}) {  // of few neurons, results keep a sign; of many, most are NaN
          test_ffn(*k, format, 64, d_ff, tokens, true, Activation::kRelu, 0.0f);
          test_ffn(*k, format, 130, d_ff, tokens, true, Activation::kRelu2, 0.5f);
          test_ffn(*k, format, 64, d_ff, tokens, false, Activation::kRelu, 0.0f);
          if (format.mixed()) continue;
          test_ffn(*k, format, 128, d_ff, tokens, true, Activation::kDrelu, 0.0f);
          test_ffn(*k, format, 70, d_ff, tokens, true, Activation::kSilu, 0.5f);
          test_ffn(*k, format, 130, d_ff, tokens, false, Activation::kRelu2, 0.5f);
        }
        if (is_quantized(format.format) && tokens == 4)
          test_ffn(*k, format, 520, 3, tokens, true, Activation::kRelu, 0.0f);
        if (format.mixed()) continue;
        test_linear(*k, format.format, 37, 70, tokens);
        test_linear(*k, format.format, 64, 128, tokens);
      }
      if (!brief && k->of[static_cast<size_t>(format.format)].bf16x3_tokens != 0) {
        test_ffn(*k, format, 64, 130, 67, true, Activation::kRelu, 0.0f);
        test_ffn(*k, format, 130, 3, 67, false, Activation::kRelu2, 0.5f);
        if (!format.mixed()) test_linear(*k, format.format, 37, 70, 67);
      }
      for (const Kind kind : {Kind::kNumber, Kind::kPlus, Kind::kMinus, Kind::kNan}) {
        CHECK(seen[static_cast<size_t>(kind)] > 1000, "%zu results of kind %d", seen[static_cast<size_t>(kind)],
              static_cast<int>(kind));
      }
      CHECK(seen[static_cast<size_t>(Kind::kAny)] * 10 < seen[static_cast<size_t>(Kind::kNumber)],
            "%zu results are not determined", seen[static_cast<size_t>(Kind::kAny)]);
    }
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
