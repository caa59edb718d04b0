// Each variant of the three kernels against double precision, with the contract's own bound.
#include <algorithm>

#include "check.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

constexpr size_t kLengths[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257};
constexpr size_t kGuard = 8;
constexpr float kGuardValue = -12345.0f;
size_t cases = 0;

// A copy of `values` that begins `shift` floats after an allocation's start, guards behind it.
struct Buffer {
  std::vector<float> storage;
  size_t shift, size;
  Buffer(const std::vector<float>& values, size_t shift_) : storage(values.size() + shift_ + kGuard, kGuardValue), shift(shift_), size(values.size()) {
    std::copy(values.begin(), values.end(), storage.begin() + static_cast<std::ptrdiff_t>(shift));
  }
  float* data() { return storage.data() + shift; }
  bool guards_intact() const {
    return std::all_of(storage.end() - kGuard, storage.end(), [](float v) { return v == kGuardValue; });
  }
};

void expect(const FfnKernels& k, const char* kernel, float actual, double exact, double magnitude, size_t n) {
  ++cases;
  const double bound = gamma_bound(n + 2) * magnitude;
  CHECK(std::abs(static_cast<double>(actual) - exact) <= bound, "%s %s n=%zu: expected %.9g, got %.9g, bound %.3g",
        k.isa, kernel, n, exact, static_cast<double>(actual), bound);
}

void test_dot_rows(const FfnKernels& k, size_t rows, size_t cols, size_t tokens, size_t shift) {
  std::mt19937 rng(static_cast<unsigned>(rows * 1000 + cols));
  Buffer w(normals(rng, rows * cols), shift), b(normals(rng, rows), shift), x(normals(rng, tokens * cols), shift);
  const size_t stride = rows + 3;
  Buffer z(std::vector<float>(tokens * stride, kGuardValue), shift);
  k.dot_rows(w.data(), b.data(), rows, cols, x.data(), tokens, z.data(), stride);
  CHECK(z.guards_intact(), "%s dot_rows wrote past its end", k.isa);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < stride; ++r) {
      if (r >= rows) {
        CHECK(z.data()[t * stride + r] == kGuardValue, "%s dot_rows wrote between rows of z", k.isa);
        continue;
      }
      double exact = b.data()[r], magnitude = std::abs(exact);
      for (size_t c = 0; c < cols; ++c) {
        const double product = static_cast<double>(w.data()[r * cols + c]) * x.data()[t * cols + c];
        exact += product;
        magnitude += std::abs(product);
      }
      expect(k, "dot_rows", z.data()[t * stride + r], exact, magnitude, cols);
      float alone = 0.0f;  // the contract: the same bits however the call is split
      k.dot_rows(w.data() + r * cols, b.data() + r, 1, cols, x.data() + t * cols, 1, &alone, 1);
      CHECK(alone == z.data()[t * stride + r], "%s dot_rows depends on the split", k.isa);
    }
  }
}

void test_active(const FfnKernels& k, size_t rows, size_t cols, double density, size_t shift) {
  std::mt19937 rng(static_cast<unsigned>(rows * 77 + cols));
  std::vector<float> weights = normals(rng, rows * cols);
  std::vector<int32_t> active;
  std::bernoulli_distribution is_active(density);
  for (size_t r = 0; r < rows; ++r) {
    if (is_active(rng)) {
      active.push_back(static_cast<int32_t>(r));
    } else {  // must not be read
      std::fill_n(weights.begin() + static_cast<std::ptrdiff_t>(r * cols), cols, NAN);
    }
  }
  Buffer w(weights, shift), b(normals(rng, std::max(rows, cols)), shift), x(normals(rng, cols), shift);
  Buffer h(normals(rng, active.size()), shift), u(std::vector<float>(active.size()), shift), y(std::vector<float>(cols), shift);
  k.dot_active(w.data(), b.data(), cols, x.data(), active.data(), active.size(), u.data());
  k.axpy_active(w.data(), cols, b.data(), h.data(), active.data(), active.size(), cols, y.data());
  CHECK(u.guards_intact() && y.guards_intact(), "%s wrote past an end", k.isa);
  for (size_t i = 0; i < active.size(); ++i) {
    const size_t r = static_cast<size_t>(active[i]);
    double exact = b.data()[r], magnitude = std::abs(exact);
    for (size_t c = 0; c < cols; ++c) {
      const double product = static_cast<double>(w.data()[r * cols + c]) * x.data()[c];
      exact += product;
      magnitude += std::abs(product);
    }
    expect(k, "dot_active", u.data()[i], exact, magnitude, cols);
  }
  const size_t half = cols / 2;  // a split by columns, with a row stride above the number of columns
  Buffer part(std::vector<float>(cols - half), shift);
  k.axpy_active(w.data() + half, cols, b.data() + half, h.data(), active.data(), active.size(), cols - half, part.data());
  for (size_t j = 0; j < cols; ++j) {
    double exact = b.data()[j], magnitude = std::abs(exact);
    for (size_t i = 0; i < active.size(); ++i) {
      const double product = static_cast<double>(h.data()[i]) * w.data()[static_cast<size_t>(active[i]) * cols + j];
      exact += product;
      magnitude += std::abs(product);
    }
    expect(k, "axpy_active", y.data()[j], exact, magnitude, active.size());
    CHECK(j < half || part.data()[j - half] == y.data()[j], "%s axpy_active depends on the split", k.isa);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const FfnKernels* k : variants_to_test(argc, argv)) {
    for (const size_t cols : kLengths) {
      for (const size_t shift : {0, 1, 3}) {
        for (const size_t tokens : {0, 1, 2, 3, 4, 5, 9}) test_dot_rows(*k, 5, cols, tokens, shift);
        for (const double density : {0.0, 0.1, 0.5, 1.0}) test_active(*k, 37, cols, density, shift);
      }
    }
    test_dot_rows(*k, 0, 16, 2, 0);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
