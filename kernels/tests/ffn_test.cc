// The whole operators, for each variant and format: against double precision, and their promises about order.
#include <string>

#include "ffn.h"
#include "matrices.h"

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
  Stored gate, up, down;
  std::vector<float> b_gate, b_up, b_down;
  std::unique_ptr<Arena> arena;
  Ffn ffn{};
  Weights(Format f, size_t d_model, size_t d_ff, bool gated, Activation activation, float threshold, std::mt19937& rng)
      : gate(f, d_ff, d_model, rng), up(f, d_ff, d_model, rng), down(f, d_ff, d_model, rng), b_gate(normals(rng, d_ff)),
        b_up(normals(rng, d_ff)), b_down(normals(rng, d_model)) {
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
    ffn.up = pack_rows(up.matrix, b_up.data(), RowOrder::kDot, *arena, 2);
    ffn.down = pack_rows(down.matrix, b_down.data(), RowOrder::kAxpy, *arena, 2);
  }
};

std::vector<float> run(const Kernels& k, const Ffn& ffn, const std::vector<float>& x, unsigned seed = 0) {
  Scratch scratch;
  std::vector<float> y(x.size(), NAN);
  run_ffn(k, ffn, x.data(), x.size() / ffn.d_model, y.data(), {run_shuffled, &seed}, scratch);
  return y;
}

// The definition in ffn.h, in double precision, with a running bound on the rounding.
void expect_block(const Kernels& k, const Weights& w, const std::vector<float>& x, const std::vector<float>& y) {
  const Ffn& f = w.ffn;
  const bool rounds = is_quantised(f.down.format) && &k != &kScalarKernels;
  for (size_t t = 0; t < x.size() / f.d_model; ++t) {
    std::vector<double> h(f.d_ff), h_error(f.d_ff);
    for (size_t r = 0; r < f.d_ff; ++r) {
      double z_error = 0.0;
      const double z = row_sum(w.gate, r, &x[t * f.d_model], w.b_gate[r], rounds, &z_error);
      // Near the threshold either side is right: what the neuron adds enters the bound instead.
      const bool uncertain = std::abs(z - f.threshold) <= z_error;
      double a = z > f.threshold ? z : 0.0;
      double a_error = uncertain ? std::abs(z) + z_error : (a == 0.0 ? 0.0 : z_error);
      if (f.activation == Activation::kRelu2) {
        a_error = 2 * std::abs(a) * a_error + a_error * a_error + gamma_bound(1) * a * a;
        a *= a;
      }
      double v = 1.0, v_error = 0.0;
      if (f.gated) {
        v = row_sum(w.up, r, &x[t * f.d_model], w.b_up[r], rounds, &v_error);
        if (f.activation == Activation::kDrelu) v = std::max(v, 0.0);  // 1-Lipschitz: the error stays
      }
      h[r] = a * v;
      h_error[r] = a_error * (std::abs(v) + v_error) + std::abs(a) * v_error + gamma_bound(1) * std::abs(h[r]);
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
        if (rounds && (h[r] != 0.0 || h_error[r] != 0.0)) bound += 0.52 * largest / kSteps * w.down.integers[r * f.d_model + j];
      }
      ++cases;
      const double actual = y[t * f.d_model + j];
      CHECK(std::abs(actual - sum) <= bound * 1.0001, "%s %s token %zu column %zu: expected %.9g, got %.9g, bound %.3g", k.isa,
            kFormatNames[static_cast<size_t>(f.down.format)], t, j, sum, actual, bound);
    }
  }
}

void test_block(const Kernels& k, Format format, size_t d_model, size_t d_ff, size_t tokens, bool gated, Activation activation, float threshold) {
  std::mt19937 rng(static_cast<unsigned>(d_model + tokens));
  const Weights weights(format, d_model, d_ff, gated, activation, threshold, rng);
  const std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> y = run(k, weights.ffn, x);
  expect_block(k, weights, x, y);
  for (const unsigned seed : {1u, 2u, 3u}) {
    CHECK(run(k, weights.ffn, x, seed) == y, "%s: the order of tasks changes the bits", k.isa);
  }
  Ffn dense = weights.ffn;
  dense.dense = true;
  expect_block(k, weights, x, run(k, dense, x));
}

// Every neuron active, none active, or as it comes.
void test_extremes(const Kernels& k, Format format, size_t d_model, size_t d_ff, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(d_model + d_ff));
  Weights weights(format, d_model, d_ff, true, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * d_model), bias = weights.b_gate;
  for (const float shift : {-1e4f, 0.0f, 1e4f}) {
    for (size_t r = 0; r < d_ff; ++r) weights.b_gate[r] = bias[r] + shift;
    weights.pack();
    const std::vector<float> y = run(k, weights.ffn, x);
    expect_block(k, weights, x, y);
    if (shift >= 0.0f) continue;
    for (size_t j = 0; j < y.size(); ++j) CHECK(y[j] == weights.b_down[j % d_model], "%s: no neuron is active, got %g", k.isa, static_cast<double>(y[j]));
  }
}

// What a model file holds, and activations, may begin anywhere.
void test_misaligned(const Kernels& k, Format format) {
  std::mt19937 rng(4);
  const size_t d_model = 70, d_ff = 90, tokens = 3;
  Weights weights(format, d_model, d_ff, true, Activation::kRelu, 0.0f, rng);
  std::vector<float> x = normals(rng, tokens * d_model);
  const std::vector<float> expected = run(k, weights.ffn, x);
  const auto shifted = [](auto& from, std::vector<uint8_t>& to) {
    const size_t bytes = from.size() * sizeof(from[0]);
    to.resize(bytes + 1);
    if (bytes != 0) std::memcpy(to.data() + 1, from.data(), bytes);
    return static_cast<const void*>(to.data() + 1);
  };
  std::vector<uint8_t> copies[9];
  Stored* const matrices[] = {&weights.gate, &weights.up, &weights.down};
  const std::vector<float>* const biases[] = {&weights.b_gate, &weights.b_up, &weights.b_down};
  const void* odd_biases[3];
  for (size_t m = 0; m < 3; ++m) {
    Matrix& matrix = matrices[m]->matrix;
    matrix.data = shifted(matrices[m]->data, copies[m]);
    if (matrix.scales != nullptr) matrix.scales = shifted(matrices[m]->scales, copies[3 + m]);
    odd_biases[m] = shifted(*biases[m], copies[6 + m]);
  }
  weights.arena = std::make_unique<Arena>(panels_bytes(weights.gate.matrix) + rows_bytes(weights.up.matrix) + rows_bytes(weights.down.matrix));
  weights.ffn.gate = pack_panels(weights.gate.matrix, odd_biases[0], *weights.arena, 2);
  weights.ffn.up = pack_rows(weights.up.matrix, odd_biases[1], RowOrder::kDot, *weights.arena, 2);
  weights.ffn.down = pack_rows(weights.down.matrix, odd_biases[2], RowOrder::kAxpy, *weights.arena, 2);
  for (const size_t offset : {1, 3}) {  // floats
    std::vector<float> memory(x.size() + offset), y(x.size() + offset, NAN);
    std::copy(x.begin(), x.end(), memory.begin() + static_cast<std::ptrdiff_t>(offset));
    Scratch scratch;
    unsigned seed = 0;
    run_ffn(k, weights.ffn, memory.data() + offset, tokens, y.data() + offset, {run_shuffled, &seed}, scratch);
    ++cases;
    CHECK(std::equal(expected.begin(), expected.end(), y.begin() + static_cast<std::ptrdiff_t>(offset)), "%s %s: misaligned memory changes the bits", k.isa,
          kFormatNames[static_cast<size_t>(format)]);
    CHECK(std::isnan(y[0]), "%s wrote before y", k.isa);
  }
}

// z is exactly the threshold, the next float above, below, NaN: inactive, active, inactive, active.
void test_boundary(const Kernels& k) {
  std::mt19937 rng(1);
  const float t = 0.25f;
  Weights w(Format::kF32, 1, 1, true, Activation::kRelu, t, rng);
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

// NaN, Inf and huge numbers in one token: it follows IEEE 754 in every format, and its neighbours do not notice.
void test_odd_tokens(const Kernels& k, Format format) {
  std::mt19937 rng(9);
  const size_t d_model = 64;
  for (const bool gated : {true, false}) {
    const Weights weights(format, d_model, 50, gated, Activation::kRelu, 0.0f, rng);
    std::vector<float> x = normals(rng, 4 * d_model);
    const std::vector<float> tame = run(k, weights.ffn, x);
    x[5] = NAN;
    x[2 * d_model + 1] = 3e38f;
    const std::vector<float> y = run(k, weights.ffn, x), reference = run(kScalarKernels, weights.ffn, x);
    for (size_t j = 0; j < d_model; ++j) {
      ++cases;
      CHECK(std::isnan(y[j]), "%s %s hides a NaN", k.isa, kFormatNames[static_cast<size_t>(format)]);
      CHECK(y[d_model + j] == tame[d_model + j] && y[3 * d_model + j] == tame[3 * d_model + j], "%s a neighbour changed", k.isa);
      const float huge = y[2 * d_model + j], expected = reference[2 * d_model + j];
      CHECK(!is_quantised(format) || huge == expected || (std::isnan(huge) && std::isnan(expected)), "%s %s huge: expected %g, got %g", k.isa,
            kFormatNames[static_cast<size_t>(format)], static_cast<double>(expected), static_cast<double>(huge));
    }
  }
}

// A row of NaN that is active for some tokens only shows in those, whatever the others share with them.
void test_hidden_rows(const Kernels& k, Format format, size_t tokens, bool gated) {
  std::mt19937 rng(static_cast<unsigned>(tokens));
  const size_t d_model = 96, d_ff = 130;
  Weights weights(format, d_model, d_ff, gated, Activation::kRelu, 0.0f, rng);
  const std::vector<float> x = normals(rng, tokens * d_model), tame = run(k, weights.ffn, x);
  for (const size_t row : {size_t{0}, size_t{64}, d_ff - 1}) {
    Weights broken(format, d_model, d_ff, gated, Activation::kRelu, 0.0f, rng);
    std::vector<bool> active(tokens);
    for (Stored* s : {&weights.up, &weights.down}) {
      Stored& other = s == &weights.up ? broken.up : broken.down;
      other.data = s->data;
      other.scales = s->scales;
      const size_t bytes = other.data.size() / d_ff, blocks = blocks_of(d_model);
      if (is_quantised(format)) {
        std::fill_n(other.scales.begin() + static_cast<std::ptrdiff_t>(row * blocks), blocks, static_cast<uint16_t>(0x7e00));
      } else {
        std::fill_n(other.data.begin() + static_cast<std::ptrdiff_t>(row * bytes), bytes, static_cast<uint8_t>(0xff));
      }
    }
    broken.gate.data = weights.gate.data;
    broken.gate.scales = weights.gate.scales;
    broken.b_gate = weights.b_gate;
    broken.b_up = weights.b_up;
    broken.b_down = weights.b_down;
    broken.pack();
    const std::vector<float> y = run(k, broken.ffn, x);
    size_t shown = 0;
    for (size_t t = 0; t < tokens; ++t) {
      double bound = 0.0;
      const double z = row_sum(weights.gate, row, &x[t * d_model], weights.b_gate[row], is_quantised(format) && &k != &kScalarKernels, &bound);
      shown += z > bound;
      for (size_t j = 0; j < d_model; ++j) {
        ++cases;
        const float actual = y[t * d_model + j], expected = tame[t * d_model + j];
        if (z > bound) CHECK(std::isnan(actual), "%s %s hides a NaN of an active row", k.isa, kFormatNames[static_cast<size_t>(format)]);
        if (z < -bound) CHECK(actual == expected, "%s %s shows a row that is not active: %g", k.isa, kFormatNames[static_cast<size_t>(format)], static_cast<double>(actual));
      }
    }
    CHECK(tokens < 9 || (shown != 0 && shown != tokens), "row %zu tests nothing", row);
  }
}

void test_linear(const Kernels& k, Format format, size_t rows, size_t cols, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(rows + tokens));
  const Stored w(format, rows, cols, rng);
  const std::vector<float> bias = normals(rng, rows), x = normals(rng, tokens * cols);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 3);
  std::vector<float> y(tokens * rows, NAN), again(y);
  for (unsigned seed : {0u, 5u}) {
    Scratch scratch;
    run_linear(k, panels, x.data(), tokens, cols, (seed ? again : y).data(), {run_shuffled, &seed}, scratch);
  }
  CHECK(y == again, "%s linear: the order of tasks changes the bits", k.isa);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double bound = 0.0;
      const double exact = row_sum(w, r, &x[t * cols], bias[r], is_quantised(format) && &k != &kScalarKernels, &bound);
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
    for (const Format f : kAllFormats) {
      for (const size_t tokens : {0, 1, 2, 9, 33}) {
        if (brief && tokens > 9) continue;
        for (const Activation activation : {Activation::kRelu, Activation::kRelu2, Activation::kDrelu}) {
          test_block(*k, f, 24, 100, tokens, true, activation, 0.0f);
          test_block(*k, f, 33, 100, tokens, true, activation, 1.5f);
        }
        test_block(*k, f, 24, 100, tokens, false, Activation::kRelu, 0.5f);
        test_block(*k, f, 520, 267, tokens, false, Activation::kRelu2, 0.0f);
        test_block(*k, f, 1, 1, tokens, true, Activation::kRelu, 0.0f);
        test_linear(*k, f, 37, 129, tokens);
        test_linear(*k, f, 64, 64, tokens);
      }
      test_odd_tokens(*k, f);
      test_misaligned(*k, f);
      for (const bool gated : {true, false}) {
        for (const size_t tokens : {1, 3, 14}) test_hidden_rows(*k, f, tokens, gated);
      }
      test_extremes(*k, f, 70, 130, 1);
      test_extremes(*k, f, 70, 130, 5);
      if (brief) continue;
      if (k != &kScalarKernels) test_block(*k, f, 2100, 300, 3, true, Activation::kRelu, 20.0f);
      if (k != &kScalarKernels) test_block(*k, f, 64, 160, 131, true, Activation::kRelu, 5.0f);
      if (k != &kScalarKernels) test_extremes(*k, f, 33, 11009, 1);
      if (k != &kScalarKernels) test_extremes(*k, f, 4097, 19, 2);
    }
    test_boundary(*k);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
