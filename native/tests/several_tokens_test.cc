// gather_gemm and scatter_gemm of each variant: several tokens at once, against double precision and scatter_axpy.
#include "kernel_checks.h"
#include "scratch.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

// A tile of neurons, and which of them each token uses. Other rows are poisoned.
struct Tile {
  static constexpr size_t kFirst = 7, kRows = kFirst + kTileRows;  // a tile need not begin at row 0
  const Kernels& k;
  const Format format;
  const size_t cols, tokens;
  const double density;
  std::mt19937 rng;
  Stored w;
  std::vector<std::vector<int32_t>> active;
  std::vector<std::vector<float>> h;
  std::vector<int32_t> used;
  std::vector<ScatterList> lists;

  Tile(const Kernels& kernels, Format f, size_t columns, size_t count, double share)
      : k(kernels),
        format(f),
        cols(columns),
        tokens(count),
        density(share),
        rng(static_cast<unsigned>(columns * 5 + count)),
        w(f, kRows, columns, rng),
        active(count),
        h(count) {
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t r = kFirst; r < kRows; ++r) {
        if (std::bernoulli_distribution(density)(rng)) active[t].push_back(static_cast<int32_t>(r));
      }
      h[t] = normals(rng, active[t].size());
      lists.push_back({active[t].data(), h[t].data(), active[t].size()});
      std::vector<int32_t> all;
      std::set_union(used.begin(), used.end(), active[t].begin(), active[t].end(), std::back_inserter(all));
      used.swap(all);
    }
    poison(w, used);
  }
  const FormatKernels& run() const { return k.of[static_cast<size_t>(format)]; }
  PrefetchRows next() const { return {used.data(), used.size(), 0}; }
};

constexpr PrefetchRows kNone{nullptr, 0, 0};

void test_gather_gemm(Tile& tile) {
  const Kernels& k = tile.k;
  const size_t cols = tile.cols, tokens = tile.tokens;
  const std::vector<int32_t>& used = tile.used;
  const std::vector<float> bias(Tile::kRows, 0.0f);
  Arena arena(rows_bytes(tile.w.matrix));
  const Rows up = pack_rows(tile.w.matrix, bias.data(), RowOrder::kDot, arena, 2);
  const size_t padded = round_up(cols, kLanes), v_stride = round_up(tokens, kTokenTile);
  std::vector<float> x(tokens * padded, 0.0f);
  for (size_t t = 0; t < tokens; ++t) {
    const std::vector<float> values = normals(tile.rng, cols);
    std::copy(values.begin(), values.end(), x.begin() + static_cast<std::ptrdiff_t>(t * padded));
  }
  std::vector<float> v(used.size() * v_stride + 1, 0.5f), other(v);
  const auto run = tile.run().gather_gemm;
  run(up, x.data(), padded, tokens, used.data(), used.size(), 0, cols, kNone, v.data(), v_stride);
  run(up, x.data(), padded, tokens, used.data(), used.size(), 0, cols, used.empty() ? kNone : tile.next(), other.data(),
      v_stride);
  for (size_t i = 0; i < used.size(); ++i) {
    float alone[kMaxTileColumns];
    std::fill_n(alone, v_stride, 0.5f);
    run(up, x.data(), padded, tokens, &used[i], 1, 0, cols, kNone, alone, v_stride);
    for (size_t t = 0; t < tokens; ++t) {
      double bound = 0.0;
      const double exact = row_sum(tile.w, static_cast<size_t>(used[i]), &x[t * padded], 0.5, false, &bound);
      expect(k, tile.format, "gather_gemm", v[i * v_stride + t], exact, bound, cols);
      CHECK(v[i * v_stride + t] == other[i * v_stride + t], "%s gather_gemm depends on prefetching", k.isa);
      CHECK(v[i * v_stride + t] == alone[t], "%s gather_gemm depends on neighboring rows", k.isa);
    }
  }
  CHECK(v.back() == 0.5f, "%s gather_gemm wrote past its end", k.isa);
}

void test_scatter_gemm(Tile& tile) {
  const Kernels& k = tile.k;
  const size_t cols = tile.cols, tokens = tile.tokens;
  const std::vector<float> bias(cols, 0.0f);
  Arena arena(rows_bytes(tile.w.matrix));
  const Rows down = pack_rows(tile.w.matrix, bias.data(), RowOrder::kAxpy, arena, 2);
  const size_t y_stride = round_up(cols, kPadColumns) + kLanes;
  std::vector<float> y = normals(tile.rng, tokens * y_stride), expected(y);
  Buffer work;
  tile.run().scatter_gemm(down, Tile::kFirst, tile.used.data(), tile.used.size(), 0, cols,
                          tile.used.empty() ? kNone : tile.next(), tile.lists.data(), tokens, y.data(), y_stride,
                          work.get<float>(kTileRows * kMaxTileColumns));
  for (size_t t = 0; t < tokens; ++t) {
    tile.run().scatter_axpy(down, tile.active[t].data(), tile.h[t].data(), tile.active[t].size(), 0, cols, false,
                            &expected[t * y_stride], nullptr);
    ++cases;
    CHECK(std::equal(y.begin() + static_cast<std::ptrdiff_t>(t * y_stride),
                     y.begin() + static_cast<std::ptrdiff_t>(t * y_stride + cols),
                     expected.begin() + static_cast<std::ptrdiff_t>(t * y_stride)),
          "%s %s scatter_gemm differs from scatter_axpy: cols=%zu tokens=%zu density=%g", k.isa,
          kFormatNames[static_cast<size_t>(tile.format)], cols, tokens, tile.density);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const Format f : kAllFormats) {
      if (is_quantized(f)) continue;
      for (const size_t cols : {1, 16, 33, 100, 257, 576}) {
        if (brief && cols != 33 && cols != 100) continue;
        for (const size_t tokens : {2, 3, 4, 5, 9, 14}) {
          for (const double density : {0.0, 0.1, 0.5, 1.0}) {
            Tile tile(*k, f, cols, tokens, density);
            test_gather_gemm(tile);
            test_scatter_gemm(tile);
          }
        }
      }
    }
    std::printf("%s done\n", k->isa);
  }
  return report(cases);
}
