// Each variant of the kernels, in each format, against double precision, with the contract's own bound.
#include "gate_gemm.h"
#include "kernel_checks.h"
#include "quantize_activations.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

bool rounds(const Kernels& k, Format f) { return is_quantized(f) && &k != &kScalarKernels; }

// Multiplies a row by a power of two: beyond bf16_limit, or to where they lose all that is not the first part.
void make_out_of_range(Stored& w, size_t row, int power) {
  for (size_t i = row * w.matrix.cols; i < (row + 1) * w.matrix.cols; ++i) {
    const float value = static_cast<float>(std::ldexp(w.values[i], power));
    w.values[i] = value;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (w.matrix.format == Format::kF32) {
      std::memcpy(&w.data[4 * i], &bits, 4);
    } else {  // BF16
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      std::memcpy(&w.data[2 * i], &upper, 2);
    }
  }
}

void test_gemm_panels(const Kernels& k, Format f, size_t rows, size_t cols, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(rows * 1000 + cols + tokens));
  Stored w(f, rows, cols, rng);
  if (rows > 20 && tokens % 2 == 1 && (f == Format::kF32 || f == Format::kBF16))
    make_out_of_range(w, 3, 110), make_out_of_range(w, rows - 1, -40);
  std::vector<float> bias = normals(rng, rows);
  if (rows > 20) bias[rows - 1] = 0.0f;
  const std::vector<float> x = normals(rng, tokens * cols);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 2);
  for (size_t r = 0; r < rows; ++r)
    CHECK(panel_weight(panels, r, cols - 1 - r % cols) == w.at(r, cols - 1 - r % cols), "%s packed wrongly",
          kFormatNames[static_cast<size_t>(f)]);
  Scratch scratch;
  const Tokens prepared = quantize_activations(k, f, panels.count(), 0, x.data(), tokens, cols, kSerial, scratch);
  const size_t stride = panels.count() * kLanes + 3;
  std::vector<float> z(tokens * stride, -7.0f), split(z);
  gate_gemm(k, panels, 0, panels.count(), prepared, nullptr, scratch, z.data(), stride);
  Panels other = panels;
  other.side_by_side = !panels.side_by_side;
  other.prefetch_distance = panels.prefetch_distance == 0 ? 512 : 0;
  std::vector<float> others(z.size(), -7.0f);
  gate_gemm(k, other, 0, panels.count(), prepared, nullptr, scratch, others.data(), stride);
  const size_t half = panels.count() / 2;
  gate_gemm(k, panels, 0, half, prepared, nullptr, scratch, split.data(), stride);
  gate_gemm(k, panels, half, panels.count(), prepared, nullptr, scratch, split.data(), stride);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double bound = 0.0;
      const double exact = row_sum(
          w, r, &x[t * cols], bias[r],
          rounds(k, f) && (prepared.bf16x3 != nullptr || tokens < k.of[static_cast<size_t>(f)].widen_tokens), &bound);
      expect(k, f, "gemm_panels", z[t * stride + r], exact, bound, cols);
      CHECK(z[t * stride + r] == split[t * stride + r], "%s gemm_panels depends on the split", k.isa);
      CHECK(z[t * stride + r] == others[t * stride + r], "%s gemm_panels depends on the order of reading", k.isa);
    }
    CHECK(z[t * stride + stride - 1] == -7.0f, "%s gemm_panels wrote between rows of z", k.isa);
  }
}

// A row of NaNs, one of infinities (x has one sign, parts of it would have both), and all other rows as without them.
void test_poisoned_panels(const Kernels& k, Format f, size_t tokens) {
  std::mt19937 rng(static_cast<unsigned>(tokens));
  const size_t rows = 40, cols = 97;
  Stored w(f, rows, cols, rng);
  poison_row(w, 5, 0);
  poison_row(w, 20, 1);
  const std::vector<float> bias = normals(rng, rows);
  std::vector<float> x = normals(rng, tokens * cols);
  for (float& value : x) value = std::abs(value);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 2);
  Scratch scratch;
  const Tokens prepared = quantize_activations(k, f, panels.count(), 0, x.data(), tokens, cols, kSerial, scratch);
  const size_t stride = panels.count() * kLanes;
  std::vector<float> z(tokens * stride);
  gate_gemm(k, panels, 0, panels.count(), prepared, nullptr, scratch, z.data(), stride);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double bound = 0.0;
      const double exact = row_sum(w, r, &x[t * cols], bias[r], false, &bound);
      if (r != 5 && r != 20) {
        expect(k, f, "gemm_panels next to poisoned rows", z[t * stride + r], exact, bound, cols);
      } else {
        CHECK(r == 5 ? std::isnan(z[t * stride + r]) : z[t * stride + r] == INFINITY,
              "%s %s gemm_panels hides what row %zu holds", k.isa, kFormatNames[static_cast<size_t>(f)], r);
      }
    }
  }
}

void test_gather_dot(const Kernels& k, Format f, size_t cols, double density) {
  std::mt19937 rng(static_cast<unsigned>(cols * 7 + 1));
  const size_t rows = 37;
  Stored w(f, rows, cols, rng);
  std::vector<int32_t> active;
  for (size_t r = 0; r < rows; ++r) {
    if (std::bernoulli_distribution(density)(rng)) active.push_back(static_cast<int32_t>(r));
  }
  poison(w, active);
  const std::vector<float> bias = normals(rng, rows), x = normals(rng, 2 * cols);
  Arena arena(rows_bytes(w.matrix));
  const Rows packed = pack_rows(w.matrix, bias.data(), k.up_order, arena, 2);
  Scratch scratch;
  const Tokens prepared = quantize_activations(k, f, 0, packed.lane_groups, x.data(), 2, cols, kSerial, scratch);
  const FormatKernels& run = k.of[static_cast<size_t>(f)];
  std::vector<float> u(active.size() + 1, -7.0f), other(u), tiled(u);
  run.gather_dot(packed, prepared, 1, active.data(), active.size(), 0, cols, 2, u.data());
  run.gather_dot(packed, prepared, 1, active.data(), active.size(), 0, cols, 0, other.data());
  for (size_t c = 0; c < cols; c += 512)
    run.gather_dot(packed, prepared, 1, active.data(), active.size(), c, std::min<size_t>(512, cols - c), 1,
                   tiled.data());
  for (size_t i = 0; i < active.size(); ++i) {
    double bound = 0.0;
    const double exact = row_sum(w, static_cast<size_t>(active[i]), &x[cols], bias[static_cast<size_t>(active[i])],
                                 rounds(k, f), &bound);
    expect(k, f, "gather_dot", u[i], exact, bound, cols);
    expect(k, f, "gather_dot by columns", tiled[i], exact,
           bound * (1 + 0x1p-20) + (&k == &kScalarKernels ? bound + std::abs(exact) * 0x1p-22 : 0.0), cols);
    CHECK(u[i] == other[i], "%s gather_dot depends on prefetching", k.isa);
    float alone = 0.0f;
    run.gather_dot(packed, prepared, 1, &active[i], 1, 0, cols, 2, &alone);
    CHECK(alone == u[i], "%s gather_dot depends on the split", k.isa);
  }
  CHECK(u.back() == -7.0f, "%s gather_dot wrote past its end", k.isa);
}

void test_scatter_axpy(const Kernels& k, Format f, size_t rows, size_t cols, double density) {
  std::mt19937 rng(static_cast<unsigned>(cols * 3 + rows));
  Stored w(f, rows, cols, rng);
  std::vector<int32_t> active;
  for (size_t r = 0; r < rows; ++r) {
    if (std::bernoulli_distribution(density)(rng)) active.push_back(static_cast<int32_t>(r));
  }
  poison(w, active);
  const std::vector<float> bias(cols, 0.0f), h = normals(rng, active.size()), start = normals(rng, cols + 256);
  Arena arena(rows_bytes(w.matrix));
  const Rows packed = pack_rows(w.matrix, bias.data(), RowOrder::kAxpy, arena, 2);
  const FormatKernels& run = k.of[static_cast<size_t>(f)];
  Buffer work;
  std::vector<float> y(start), split(start);
  run.scatter_axpy(packed, active.data(), h.data(), active.size(), 0, cols, 2, y.data(),
                   work.get<uint8_t>(scatter_axpy_work_bytes(cols)));
  for (size_t c = 0; c < cols; c += 128) {
    run.scatter_axpy(packed, active.data(), h.data(), active.size(), c, std::min<size_t>(128, cols - c), 0,
                     split.data() + c, work.get<uint8_t>(scatter_axpy_work_bytes(cols)));
  }
  for (size_t j = 0; j < cols; ++j) {
    double exact = start[j], magnitude = std::abs(start[j]), rounding = 0.0;
    for (size_t i = 0; i < active.size(); ++i) {
      const size_t r = static_cast<size_t>(active[i]);
      exact += h[i] * w.at(r, j);
      magnitude += std::abs(h[i] * w.at(r, j));
      if (!rounds(k, f)) continue;
      double largest = 1e-30;  // of this chunk of the list, in this group of columns
      for (size_t o = i / kScatterChunk * kScatterChunk;
           o < std::min(active.size(), (i / kScatterChunk + 1) * kScatterChunk); ++o) {
        largest = std::max(largest, std::abs(h[o] * w.scale(static_cast<size_t>(active[o]), j)));
      }
      rounding += 0.51 * largest / kSteps * w.integers[r * cols + j];
    }
    expect(k, f, "scatter_axpy", y[j], exact, gamma_bound(active.size() + 6) * (magnitude + rounding) + rounding, cols);
    CHECK(y[j] == split[j], "%s %s scatter_axpy depends on the split", k.isa, kFormatNames[static_cast<size_t>(f)]);
  }
}

void test_compact(const Kernels& k) {
  std::mt19937 rng(1);
  for (size_t count = 0; count < 70; ++count) {
    std::vector<float> z = normals(rng, count);
    if (count > 3) z[1] = NAN, z[2] = 0.25f, z[3] = std::nextafter(0.25f, 1.0f);
    std::vector<int32_t> active(count + 16);
    std::vector<float> a(count + 16);
    const size_t found = k.compact(z.data(), count, 0.25f, active.data(), a.data());
    size_t expected = 0;
    for (size_t i = 0; i < count; ++i) {
      if (z[i] <= 0.25f) continue;
      ++cases;
      CHECK(expected < found && active[expected] == static_cast<int32_t>(i), "%s compact misses %zu", k.isa, i);
      CHECK(std::memcmp(&a[expected], &z[i], 4) == 0, "%s compact changes %zu", k.isa, i);
      ++expected;
    }
    CHECK(expected == found, "%s compact: %zu, got %zu", k.isa, expected, found);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const Format f : kAllFormats) {
      for (const size_t cols : {1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257, 576, 4097}) {
        if (brief && cols != 1 && cols != 33 && cols != 100 && cols != 257 && cols != 576) continue;
        for (const size_t tokens : {1, 2, 3, 5, 8, 13, 27}) {
          if (brief && tokens > 8 && (cols != 100 || tokens != 27)) continue;
          if (cols < 600 || tokens < 3) test_gemm_panels(*k, f, 21, cols, tokens);
        }
        for (const double density : {0.0, 0.1, 0.5, 1.0}) test_gather_dot(*k, f, cols, density);
        for (const double density : {0.0, 0.1, 1.0}) test_scatter_axpy(*k, f, cols < 600 ? 300 : 40, cols, density);
      }
      for (const size_t tokens : {1, 9, 67}) {
        if (!is_quantized(f) && (!brief || tokens == 9)) test_poisoned_panels(*k, f, tokens);
      }
      test_gemm_panels(*k, f, 1, 8, 2);
      test_gemm_panels(*k, f, 80, 40, 4);
      test_gemm_panels(*k, f, 105, 100, 1);  // seven panels
      if (!brief)
        test_gemm_panels(*k, f, 33, 4097, 13);  // a panel larger than the cache, and more tokens than one group
      if (!brief && k != &kScalarKernels) test_gemm_panels(*k, f, 150, 257, 67);  // several groups of panels in AMX
    }
    test_compact(*k);
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
