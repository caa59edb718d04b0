// Rows, scales, panels and biases beyond 2^32 bytes and 2^32 elements, for each variant, format and kernel.
#include "gate_gemm.h"
#include "matrices.h"
#include "quantize_activations.h"
#include "sparse_memory.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;
constexpr size_t kCols = 256, kFew = 16, kTokens = 5;
constexpr size_t kFirst = (size_t{1} << 28) + 5 * kTileRows * kLanes;  // of a panel and of a tile
static_assert(kFirst % kLanes == 0);
constexpr size_t kRows = kFirst + kFew;
const Parallel kSerial{run_serially, nullptr};

void expect(const Kernels& k, Format f, const char* kernel, double actual, double exact, double bound) {
  ++cases;
  CHECK(std::abs(actual - exact) <= bound, "%s %s %s: expected %.9g, got %.9g, bound %.3g", k.isa,
        kFormatNames[static_cast<size_t>(f)], kernel, exact, actual, bound);
}

// A few rows, packed, and then put where rows [kFirst, kRows) of a huge matrix are.
struct Far {
  Stored few;
  std::vector<float> few_bias;
  Arena arena;
  Panels panels;
  Rows dot, axpy;
  SparseMemory panel_data, dot_data, axpy_data, bias;

  Far(Format f, std::mt19937& rng)
      : few(f, kFew, kCols, rng),
        few_bias(normals(rng, kCols)),
        arena(panels_bytes(few.matrix) + 2 * rows_bytes(few.matrix)),
        panels(pack_panels(few.matrix, few_bias.data(), arena, 1)),
        dot(pack_rows(few.matrix, few_bias.data(), RowOrder::kDot, arena, 1)),
        axpy(pack_rows(few.matrix, few_bias.data(), RowOrder::kAxpy, arena, 1)),
        panel_data((kRows / kLanes + 1) * panels.panel_bytes),
        dot_data((kRows + 1) * dot.row_bytes),
        axpy_data((kRows + 1) * axpy.row_bytes),
        bias(kRows * sizeof(float)) {
    std::memcpy(panel_data.data() + kFirst / kLanes * panels.panel_bytes, panels.data, panels.panel_bytes);
    std::memcpy(dot_data.data() + kFirst * dot.row_bytes, dot.data, kFew * dot.row_bytes);
    std::memcpy(axpy_data.data() + kFirst * axpy.row_bytes, axpy.data, kFew * axpy.row_bytes);
    std::memcpy(bias.as<float>() + kFirst, few_bias.data(), kFew * sizeof(float));
    panels.data = panel_data.data();
    dot.data = dot_data.data();
    axpy.data = axpy_data.data();
    panels.bias = dot.bias = bias.as<float>();
    panels.rows = dot.rows = axpy.rows = kRows;
  }
};

bool rounds(const Kernels& k, Format f) { return is_quantized(f) && &k != &kScalarKernels; }

void test_gemm_panels(const Kernels& k, Format f, const Far& far, const std::vector<float>& x) {
  const SparseMemory z(2 * kRows * sizeof(float));
  for (const size_t tokens : {size_t{1}, size_t{2}}) {
    Scratch scratch;
    const Tokens prepared =
        quantize_activations(k, f, far.panels.count(), 0, x.data(), tokens, kCols, kSerial, scratch);
    k.of[static_cast<size_t>(f)].gemm_panels(far.panels, kFirst / kLanes, kRows / kLanes, prepared, z.as<float>(),
                                             kRows);
    for (size_t r = 0; r < kFew * tokens; ++r) {
      double bound = 0.0;
      const double exact =
          row_sum(far.few, r % kFew, &x[r / kFew * kCols], far.few_bias[r % kFew], rounds(k, f), &bound);
      expect(k, f, "gemm_panels", z.as<float>()[r / kFew * kRows + kFirst + r % kFew], exact, bound);
    }
  }
}

void test_gather_dot(const Kernels& k, Format f, const Far& far, const std::vector<float>& x,
                     const std::vector<int32_t>& active) {
  Scratch scratch;
  const Tokens prepared =
      quantize_activations(k, f, 0, far.dot.lane_groups, x.data(), kTokens, kCols, kSerial, scratch);
  for (const int prefetches : {0, 1, 2}) {
    std::vector<float> u(active.size());
    k.of[static_cast<size_t>(f)].gather_dot(far.dot, prepared, 1, active.data(), active.size(), 0, kCols, prefetches,
                                            u.data());
    for (size_t i = 0; i < u.size(); ++i) {
      double bound = 0.0;
      const double exact = row_sum(far.few, 2 * i, &x[kCols], far.few_bias[2 * i], rounds(k, f), &bound);
      expect(k, f, "gather_dot", u[i], exact, bound);
    }
  }
}

void test_scatter_axpy(const Kernels& k, Format f, const Far& far, const std::vector<int32_t>& active,
                       const std::vector<float>& h) {
  std::vector<float> y(kCols, 0.0f);
  Buffer work;
  k.of[static_cast<size_t>(f)].scatter_axpy(far.axpy, active.data(), h.data(), active.size(), 0, kCols, 2, y.data(),
                                            work.get<uint8_t>(scatter_axpy_work_bytes(kCols)));
  for (size_t c = 0; c < kCols; ++c) {
    double exact = 0.0, magnitude = 0.0, largest = 1e-30, integers = 0.0;
    for (size_t i = 0; i < active.size(); ++i) {
      exact += h[i] * far.few.at(2 * i, c);
      magnitude += std::abs(h[i] * far.few.at(2 * i, c));
      if (!rounds(k, f)) continue;
      largest = std::max(largest, std::abs(h[i] * far.few.scale(2 * i, c)));
      integers += far.few.integers[2 * i * kCols + c];
    }
    const double rounding = 0.52 * largest / kSteps * integers;
    expect(k, f, "scatter_axpy", y[c], exact, gamma_bound(active.size() + 6) * (magnitude + rounding) + rounding);
  }
}

void test_several_tokens(const Kernels& k, Format f, const Far& far, const std::vector<float>& x,
                         const std::vector<int32_t>& active, const std::vector<float>& h) {
  const FormatKernels& run = k.of[static_cast<size_t>(f)];
  const PrefetchRows none{nullptr, 0, 0};
  std::vector<float> v(kFew * 2 * kLanes, 0.0f);
  run.gather_gemm(far.dot, x.data(), kCols, kTokens, active.data(), active.size(), 0, kCols, none, v.data(),
                  2 * kLanes);
  for (size_t i = 0; i < active.size() * kTokens; ++i) {
    double bound = 0.0;
    const double exact = row_sum(far.few, i / kTokens * 2, &x[i % kTokens * kCols], 0.0, false, &bound);
    expect(k, f, "gather_gemm", v[i / kTokens * 2 * kLanes + i % kTokens], exact, bound);
  }
  std::vector<float> alone(kCols, 0.0f);
  run.scatter_axpy(far.axpy, active.data(), h.data(), active.size(), 0, kCols, false, alone.data(), nullptr);
  for (const size_t tokens : {size_t{1}, kTokens}) {  // with few entries row by row, with many from a copy
    const std::vector<ScatterList> lists(kTokens, ScatterList{active.data(), h.data(), active.size()});
    std::vector<float> y(kTokens * kCols, 0.0f);
    Buffer work;
    run.scatter_gemm(far.axpy, kFirst, active.data(), active.size(), 0, kCols, none, lists.data(), tokens, y.data(),
                     kCols, work.get<float>(kTileRows * kMaxTileColumns));
    for (size_t c = 0; c < tokens * kCols; ++c) expect(k, f, "scatter_gemm", y[c], alone[c % kCols], 0.0);
  }
}

void test_format(const Kernels& k, Format f) {
  std::mt19937 rng(1);
  const Far far(f, rng);
  const std::vector<float> x = normals(rng, kTokens * kCols);
  std::vector<int32_t> active;
  for (size_t r = 0; r < kFew; r += 2) active.push_back(static_cast<int32_t>(kFirst + r));
  const std::vector<float> h = normals(rng, active.size());
  test_gemm_panels(k, f, far, x);
  test_gather_dot(k, f, far, x, active);
  test_scatter_axpy(k, f, far, active, h);
  if (!is_quantized(f)) test_several_tokens(k, f, far, x, active, h);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const Format format : kAllFormats) test_format(*k, format);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
