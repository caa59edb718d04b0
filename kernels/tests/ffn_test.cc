// The whole block, for each variant: against double precision, and its promises about order.
#include <algorithm>
#include <string>

#include "check.h"
#include "ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// A stand-in for a thread pool: runs the tasks in an order that depends on `seed`, 0 for in order.
void run_shuffled(void* seed, size_t count, void (*task)(void*, size_t), void* argument) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = i;
  std::mt19937 rng(*static_cast<unsigned*>(seed));
  if (*static_cast<unsigned*>(seed) != 0) std::shuffle(order.begin(), order.end(), rng);
  for (const size_t i : order) task(argument, i);
}

struct Weights {
  std::vector<float> w_gate, b_gate, w_up, b_up, w_down, b_down;
  Ffn ffn;
  Weights(size_t d_model, size_t d_ff, bool gated, Activation activation, float threshold, std::mt19937& rng)
      : w_gate(normals(rng, d_ff * d_model)), b_gate(normals(rng, d_ff)), w_up(normals(rng, d_ff * d_model)),
        b_up(normals(rng, d_ff)), w_down(normals(rng, d_ff * d_model)), b_down(normals(rng, d_model)),
        ffn{gated ? w_gate.data() : nullptr, gated ? b_gate.data() : nullptr, w_up.data(), b_up.data(),
            w_down.data(), b_down.data(), d_model, d_ff, activation, threshold} {}
};

std::vector<float> run(const FfnKernels& k, const Ffn& ffn, const std::vector<float>& x, unsigned seed = 0) {
  ScratchPool pool(ffn.d_ff);
  std::vector<float> y(x.size(), NAN);
  std::unique_ptr<Scratch> scratch = pool.take();
  run_ffn(k, ffn, x.data(), x.size() / ffn.d_model, y.data(), {run_shuffled, &seed}, *scratch);
  return y;
}

double row_dot(const float* w, const float* x, size_t n, double* magnitude) {
  double sum = 0.0;
  *magnitude = 0.0;
  for (size_t i = 0; i < n; ++i) {
    sum += static_cast<double>(w[i]) * x[i];
    *magnitude += std::abs(static_cast<double>(w[i]) * x[i]);
  }
  return sum;
}

// The definition in ffn.h, in double precision, with a running bound on single precision's error.
void expect_block(const FfnKernels& k, const Ffn& f, const std::vector<float>& x, const std::vector<float>& y) {
  const double g = gamma_bound(f.d_model + 3);
  for (size_t t = 0; t < x.size() / f.d_model; ++t) {
    std::vector<double> sum(f.b_down, f.b_down + f.d_model), bound(f.d_model, 0.0);
    for (size_t j = 0; j < f.d_model; ++j) bound[j] = gamma_bound(f.d_ff + 2) * std::abs(sum[j]);
    for (size_t r = 0; r < f.d_ff; ++r) {
      double z_magnitude = 0.0, v_magnitude = 0.0;
      const float* gate = f.w_gate != nullptr ? f.w_gate : f.w_up;
      double z = row_dot(gate + r * f.d_model, &x[t * f.d_model], f.d_model, &z_magnitude);
      const double bias = f.w_gate != nullptr ? f.b_gate[r] : f.b_up[r];
      z += bias;
      double z_error = g * (z_magnitude + std::abs(bias));
      // Near the threshold either side is right: what the neuron adds enters the bound instead.
      const bool uncertain = std::abs(z - f.threshold) <= z_error;
      double a = z > f.threshold ? z : 0.0;
      double a_error = uncertain ? std::abs(z) + z_error : (a == 0.0 ? 0.0 : z_error);
      if (f.activation == Activation::kRelu2) {
        a_error = 2 * std::abs(a) * a_error + a_error * a_error + gamma_bound(1) * a * a;
        a *= a;
      }
      double v = 1.0, v_error = 0.0;
      if (f.w_gate != nullptr) {
        v = row_dot(f.w_up + r * f.d_model, &x[t * f.d_model], f.d_model, &v_magnitude) + f.b_up[r];
        v_error = g * (v_magnitude + std::abs(static_cast<double>(f.b_up[r])));
        if (f.activation == Activation::kDrelu) v = std::max(v, 0.0);  // 1-Lipschitz: the error stays
      }
      const double h = a * v, h_error = a_error * (std::abs(v) + v_error) + std::abs(a) * v_error + gamma_bound(1) * std::abs(h);
      for (size_t j = 0; j < f.d_model; ++j) {
        const double w = f.w_down[r * f.d_model + j];
        sum[j] += h * w;
        bound[j] += std::abs(w) * (h_error + gamma_bound(f.d_ff + 2) * (std::abs(h) + h_error));
      }
    }
    for (size_t j = 0; j < f.d_model; ++j) {
      ++cases;
      CHECK(std::abs(y[t * f.d_model + j] - sum[j]) <= bound[j] * 1.0001, "%s token %zu column %zu: expected %.9g, got %.9g, bound %.3g",
            k.isa, t, j, sum[j], static_cast<double>(y[t * f.d_model + j]), bound[j]);
    }
  }
}

void test_block(const FfnKernels& k, size_t d_model, size_t d_ff, size_t tokens, bool gated, Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model + tokens));
  const Weights weights(d_model, d_ff, gated, activation, threshold, rng);
  const std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> y = run(k, weights.ffn, x);
  expect_block(k, weights.ffn, x, y);
  for (const unsigned seed : {1u, 2u, 3u}) {
    CHECK(run(k, weights.ffn, x, seed) == y, "%s: the order of tasks changes the bits", k.isa);
  }
  for (size_t t = 0; t < tokens; ++t) {
    const std::vector<float> one(x.begin() + static_cast<std::ptrdiff_t>(t * d_model), x.begin() + static_cast<std::ptrdiff_t>((t + 1) * d_model));
    const std::vector<float> alone = run(k, weights.ffn, one);
    CHECK(std::equal(alone.begin(), alone.end(), y.begin() + static_cast<std::ptrdiff_t>(t * d_model)), "%s: token %zu alone has other bits", k.isa, t);
  }
}

// z is exactly the threshold, the next float above, below, NaN: inactive, active, inactive, active.
void test_boundary(const FfnKernels& k) {
  const float t = 0.25f;
  const float z[] = {t, std::nextafter(t, 1.0f), std::nextafter(t, 0.0f), NAN};
  for (size_t i = 0; i < 4; ++i) {
    const float one = 1.0f, zero = 0.0f;
    const Ffn ffn{&one, &zero, &one, &zero, &one, &zero, 1, 1, Activation::kRelu, t};
    const std::vector<float> y = run(k, ffn, {z[i]});  // z = x, v = x, y = z * x
    ++cases;
    if (i == 3) {
      CHECK(std::isnan(y[0]), "%s hides a NaN", k.isa);
    } else {
      CHECK(y[0] == (i == 1 ? z[i] * z[i] : 0.0f), "%s boundary case %zu: got %g", k.isa, i, static_cast<double>(y[0]));
    }
  }
}

// Rows of up and down of an inactive neuron are never read.
void test_poison(const FfnKernels& k) {
  std::mt19937 rng(5);
  Weights weights(32, 48, true, Activation::kRelu, 0.0f, rng);
  for (size_t r = 0; r < 48; r += 2) {
    weights.b_gate[r] = -1e6f;  // never active
    for (size_t c = 0; c < 32; ++c) weights.w_up[r * 32 + c] = weights.w_down[r * 32 + c] = NAN;
  }
  for (const float value : run(k, weights.ffn, normals(rng, 5 * 32))) {
    ++cases;
    CHECK(std::isfinite(value), "%s read an inactive row", k.isa);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const FfnKernels* k : variants_to_test(argc, argv)) {
    for (const size_t tokens : {0, 1, 2, 9, 33}) {
      for (const Activation activation : {Activation::kRelu, Activation::kRelu2, Activation::kDrelu}) {
        test_block(*k, 24, 100, tokens, true, activation, 0.0f);
        test_block(*k, 24, 100, tokens, true, activation, 1.5f);
      }
      test_block(*k, 24, 100, tokens, false, Activation::kRelu, 0.5f);
      test_block(*k, 520, 67, tokens, false, Activation::kRelu2, 0.0f);
      test_block(*k, 1, 1, tokens, true, Activation::kRelu, 0.0f);
    }
    test_boundary(*k);
    test_poison(*k);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
