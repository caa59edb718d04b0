// What the operators should compute, in double precision, with bounds.
#ifndef PROSPARSE_TESTS_EXACT_FFN_H_
#define PROSPARSE_TESTS_EXACT_FFN_H_

#include "random_ffn.h"
#include "rounded_ffn.h"

namespace prosparse::testing {

inline size_t cases = 0;

// The definition in ffn.h, in double precision, with a running bound on the rounding.
inline void expect_ffn(const Kernels& k, const Weights& w, const std::vector<float>& x, const std::vector<float>& y,
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

inline void test_linear(const Kernels& k, Format format, size_t rows, size_t cols, size_t tokens,
                        bool level_4 = false) {
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

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_EXACT_FFN_H_
