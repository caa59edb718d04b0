// Scales and integers of weights against a scalar reference with libm's rounding: the same bits, for every instruction
// set, type, layout and number of threads, and nothing beyond the arrays (run it under the sanitizers).
#include "round_weights.h"

#include <cfloat>
#include <limits>

#include "check.h"
#include "half.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;
enum class Kind { kI8, kI4, kNL4 };
const int32_t kLevels[16] = {-64, -50, -40, -31, -24, -17, -11, -5, 0, 7, 13, 20, 28, 36, 47, 62};
const std::vector<float> kFactors = {1.0f, 0.85f, 0.92f, -0.85f, -0.92f, -1.0f, -1.08f};

// A matrix in memory of exactly its size: `pitch` is the distance of rows, or of columns if these are contiguous.
struct Source {
  std::vector<float> values;
  std::vector<uint16_t> halves;
  SourceWeights view{};

  Source(size_t rows, size_t cols, int32_t type, bool by_rows, Kind kind, std::mt19937& rng) {
    const size_t count = rows * cols;
    const int32_t low[] = {-127, -8, -64}, high[] = {127, 7, 62};
    const size_t k = static_cast<size_t>(kind);
    view = {nullptr, type, low[k], high[k], kind == Kind::kNL4 ? kLevels : nullptr, rows, cols, 1, 1};
    (by_rows ? view.row_stride : view.col_stride) = static_cast<ptrdiff_t>(by_rows ? cols : rows);
    values = normals(rng, count);
    for (size_t i = 0; i < count; ++i) {
      if (i % 5 == 0) values[i] = std::ldexp(values[i], static_cast<int>(rng() % 24) - 16);
      if (i % 7 == 0) values[i] = i % 2 ? 0.0f : -0.0f;
      halves.push_back(static_cast<uint16_t>(rng() % 0x7c00u | rng() % 2 << 15));  // subnormal ones too
    }
    view.data = type == 1 ? static_cast<const void*>(values.data()) : halves.data();
  }
  float at(size_t row, size_t col) const {
    const size_t i = row * static_cast<size_t>(view.row_stride) + col * static_cast<size_t>(view.col_stride);
    return view.type == 1 ? values[i] : view.type == 10 ? f16_to_float(halves[i]) : bf16_to_float(halves[i]);
  }
  size_t groups() const { return (view.cols + 31) / 32; }
};

float integer(float quotient, const SourceWeights& w) {
  if (w.levels != nullptr) {  // the nearest; halfway, the lower one
    const int32_t* best = w.levels;
    for (const int32_t* level = w.levels + 1; level < w.levels + 16; ++level) {
      const double gain =
          std::fabs(static_cast<double>(quotient) - *best) - std::fabs(static_cast<double>(quotient) - *level);
      if (gain > 0) best = level;
    }
    return static_cast<float>(*best);
  }
  if (!(quotient >= static_cast<float>(w.low))) quotient = static_cast<float>(w.low);
  if (quotient > static_cast<float>(w.high)) quotient = static_cast<float>(w.high);
  return std::nearbyint(quotient) + 0.0f;
}

// Before it becomes float16; group_scales.py has the definition. `first`: for the largest magnitude.
float scale_of(const Source& source, size_t row, size_t group, const float* importance, float& first) {
  const SourceWeights& w = source.view;
  float top = 0.0f, bottom = 0.0f, gain = 0.0f;
  std::vector<float> v(32), cost(32, importance == nullptr ? 1.0f : 0.0f);
  for (size_t c = 0; c < 32 && group * 32 + c < w.cols; ++c) {
    v[c] = source.at(row, group * 32 + c);
    if (importance != nullptr) cost[c] = importance[group * 32 + c];
    top = std::fmax(top, v[c]);
    bottom = std::fmin(bottom, v[c]);
  }
  const float peak = top >= -bottom ? top : bottom;
  first = (w.low == -127 ? std::fabs(peak) / 127.0f : peak / static_cast<float>(w.low)) + 0.0f;
  float best = first;
  for (const float factor : kFactors) {
    const float trial = first * factor, inverse = std::fabs(trial) >= FLT_MIN ? 1.0f / trial : 0.0f;
    volatile float along = 0.0f, size = 0.0f;  // no fused operations, whatever this file is compiled with
    for (size_t c = 0; c < 32; ++c) {
      const float q = integer(v[c] * inverse, w);
      volatile float weighted = v[c] * cost[c], square = q * q;
      volatile float one = q * weighted, other = square * cost[c];
      along = along + one;
      size = size + other;
    }
    const float scale = along / std::fmax(size, 1e-30f);
    volatile float reduction = scale * along;
    if (reduction > gain) gain = reduction, best = scale;
  }
  return best;
}

void check_scale(float got, float wanted, float first, const char* isa, size_t row, size_t group) {
  const float expected = std::fabs(wanted) < 65520.0f ? wanted : first;
  // Half a step of float16: 2^-11 of the value, 2^-25 where it is subnormal. test_weight_rounding.py compares bits.
  CHECK(std::fabs(got - expected) <= std::fmax(std::ldexp(std::fabs(expected), -11), 0x1p-25f),
        "%s: scale of row %zu group %zu: %g, expected %g", isa, row, group, got, expected);
}

void test(const RoundingKernels& kernels, const Source& source, bool is_weighted, unsigned threads) {
  const SourceWeights& w = source.view;
  std::vector<float> importance(w.cols);
  for (size_t c = 0; c < w.cols; ++c)
    importance[c] = std::ldexp(1.0f + static_cast<float>(c % 3), static_cast<int>(c % 9) - 4);
  const ScaleSearch search = {kFactors.data(), kFactors.size(), is_weighted ? importance.data() : nullptr};
  std::vector<uint16_t> scales(w.rows * source.groups()), other(scales.size());
  const bool is_known = search_scales(kernels, w, search, scales.data(), threads);
  CHECK(search_scales(*kRoundingVariants[kRoundingVariantCount - 1].kernels, w, search, other.data(), 1) == is_known,
        "%s: known", kernels.isa);
  if (!is_known) return;  // a scale beyond float16
  CHECK(scales == other, "%s: other bits than any", kernels.isa);
  std::vector<uint8_t> packed(w.rows * source.groups() * 16);
  std::vector<int8_t> bytes(w.rows * w.cols);
  std::vector<float> values(w.rows * w.cols);
  const bool is_packed = w.low != -127;
  const RoundedWeights rounded = {is_packed ? packed.data() : nullptr, is_packed ? nullptr : bytes.data(),
                                  values.data(), w.row_stride, w.col_stride};
  CHECK(round_weights(kernels, w, scales.data(), rounded, threads), "%s: not rounded", kernels.isa);
  for (size_t r = 0; r < w.rows; ++r) {
    for (size_t c = 0; c < w.cols; ++c, ++cases) {
      float first;
      const float scale = f16_to_float(scales[r * source.groups() + c / 32]);
      const float found = c % 32 ? 0.0f : scale_of(source, r, c / 32, search.importance, first);
      if (c % 32 == 0) check_scale(scale, found, first, kernels.isa, r, c / 32);
      const float q = scale == 0.0f ? 0.0f : integer(source.at(r, c) / scale, w);
      const uint8_t byte = packed[r * source.groups() * 16 + c / 2];
      const int field = c % 2 ? byte >> 4 : byte & 15;
      const int stored = !is_packed ? bytes[r * w.cols + c] : w.levels != nullptr ? w.levels[field] : field - 8;
      const float value = values[r * static_cast<size_t>(w.row_stride) + c * static_cast<size_t>(w.col_stride)];
      CHECK(static_cast<float>(stored) == q && value == q * scale, "%s: row %zu column %zu: %d, expected %g",
            kernels.isa, r, c, stored, q);
    }
  }
}

void test_failures(const RoundingKernels& kernels) {
  std::mt19937 rng(7);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e9f}) {
    Source source(40, 70, 1, true, Kind::kI4, rng);
    source.values[39 * 70 + 69] = bad;
    const ScaleSearch search = {kFactors.data(), kFactors.size(), nullptr};
    std::vector<uint16_t> scales(40 * 3, 0x3c00);
    std::vector<float> values(40 * 70);
    const RoundedWeights rounded = {nullptr, nullptr, values.data(), 70, 1};
    ++cases;
    CHECK(round_weights(kernels, source.view, scales.data(), rounded, 2) == (bad == 1e9f), "%s: %g", kernels.isa, bad);
    CHECK(!search_scales(kernels, source.view, search, scales.data(), 2), "%s: a scale for %g", kernels.isa, bad);
    source.values[39 * 70 + 69] = 0.0f;
    scales[7] = 0x7e00;
    CHECK(!round_weights(kernels, source.view, scales.data(), rounded, 2), "%s: a NaN scale", kernels.isa);
    source.view.type = 11;
    CHECK(!search_scales(kernels, source.view, search, scales.data(), 2), "%s: float64", kernels.isa);
  }
}

}  // namespace

int main() {
  std::mt19937 rng(1);
  for (size_t v = 0; v < kRoundingVariantCount; ++v) {
    const RoundingKernels& kernels = *kRoundingVariants[v].kernels;
    if (!kRoundingVariants[v].is_supported()) {
      std::printf("left out: %s is not supported here\n", kernels.isa);
      continue;
    }
    test_failures(kernels);
    for (const auto& [rows, cols] : std::vector<std::pair<size_t, size_t>>{{1, 1}, {3, 33}, {16, 32}, {37, 100}}) {
      for (const int32_t type : {1, 10, 16}) {
        for (const bool by_rows : {true, false}) {
          for (const Kind kind : {Kind::kI8, Kind::kI4, Kind::kNL4}) {
            const Source source(rows, cols, type, by_rows, kind, rng);
            for (const bool is_weighted : {true, false}) test(kernels, source, is_weighted, is_weighted ? 1 : 5);
          }
        }
      }
    }
  }
  return report(cases);
}
