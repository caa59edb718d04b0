// Weights as bfloat16 operands of AMX tiles: every value at its place, on any processor with AVX-512.
#include <immintrin.h>

#include "cpu_features.h"
#include "half.h"
#include "matrices.h"

#define PROSPARSE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define PROSPARSE_SIMD "simd_avx512.inc"
#define PROSPARSE_MORE "bf16_expand.inc"
#include "variant.inc"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

constexpr size_t kRows = 16, kCols = 3 * kPadColumns, kRowTiles = kCols / kGroupColumns;
size_t cases = 0;

// Lane `index` of a line holds two bfloat16, the first one low. Rounding to nearest errs by up to 2^-8.
void check_pair(Format format, const char* what, const uint8_t* line, size_t index, double first, double second) {
  uint16_t pair[2];
  std::memcpy(pair, line + index * sizeof(pair), sizeof(pair));
  const double wanted[] = {first, second};
  for (size_t i = 0; i < 2; ++i, ++cases) {
    const double got = static_cast<double>(bf16_to_float(pair[i]));
    CHECK(std::abs(got - wanted[i]) <= std::abs(wanted[i]) * 0x1p-8, "%s, %s, lane %zu: %g, expected %g",
          spec(format).name, what, index, got, wanted[i]);
  }
}

template <Format format>
PROSPARSE_ATTRIBUTE void panel_tile(const uint8_t* panel, size_t c, uint8_t* tile) {
  for (size_t unit = 0; unit < kPanelUnits<format>; ++unit) expand_panel<format>(panel, c, unit, 0, tile);
}

template <Format format>
PROSPARSE_ATTRIBUTE void row_tiles(const uint8_t* in, const uint16_t* scales, uint8_t* tiles) {
  for (size_t group = 0; group < kRowTiles; ++group)
    expand_group<format>(in + group * kRowGroupBytes<format>, f16_to_float(scales[group]),
                         tiles + group * kAmxTileBytes);
}

template <Format format>
PROSPARSE_ATTRIBUTE void down_tiles(const uint8_t* const (&in)[2], const uint16_t* const (&scales)[2], uint8_t* tiles) {
  expand_down<format>(in, scales, tiles, kAmxTileBytes);
}

template <Format format>
void test_panel(const Stored& w) {
  const std::vector<float> bias(kRows);
  Arena arena(panels_bytes(w.matrix));
  const Panels panels = pack_panels(w.matrix, bias.data(), arena, 1);
  alignas(kLineBytes) uint8_t tile[kAmxTileBytes];
  for (size_t c = 0; c < kCols; c += kGroupColumns) {
    panel_tile<format>(panels.data, c, tile);
    for (size_t pair = 0; pair < kGroupColumns / 2; ++pair) {
      for (size_t r = 0; r < kRows; ++r) {
        const size_t column = c + 2 * pair, line = panels_are_left<format> ? r : pair, lane = r + pair - line;
        check_pair(format, "panel", tile + line * kLineBytes, lane, w.at(r, column), w.at(r, column + 1));
      }
    }
  }
}

template <Format format>
void test_row(const Stored& w) {
  const std::vector<float> bias(kCols);
  Arena arena(rows_bytes(w.matrix));
  const Rows rows = pack_rows(w.matrix, bias.data(), RowOrder::kDot, arena, 1);
  alignas(kLineBytes) uint8_t tiles[kRowTiles * kAmxTileBytes];
  for (size_t r = 0; r < kRows; ++r) {
    row_tiles<format>(rows.data + r * rows.row_bytes, rows.scales(r), tiles);
    for (size_t column = 0; column < kCols; column += 2) {
      check_pair(format, "row", tiles + column / kGroupColumns * kAmxTileBytes, column % kGroupColumns / 2,
                 w.at(r, column), w.at(r, column + 1));
    }
  }
}

template <Format format>
void test_down(const Stored& w) {
  constexpr size_t N = fields(format), kTiles = 2 * kPadColumns / kGroupColumns;
  const std::vector<float> bias(kCols);
  Arena arena(rows_bytes(w.matrix));
  const Rows rows = pack_rows(w.matrix, bias.data(), RowOrder::kAxpy, arena, 1);
  alignas(kLineBytes) uint8_t tiles[kTiles * kAmxTileBytes];
  for (size_t r = 0; r < kRows; r += 2) {
    for (size_t c = 0; c < kCols; c += kPadColumns) {
      const uint8_t* in[2];
      const uint16_t* scales[2];
      for (size_t i = 0; i < 2; ++i) {
        in[i] = rows.data + (r + i) * rows.row_bytes + c / kGroupColumns / N * kLineBytes;
        scales[i] = rows.scales(r + i) + c / kGroupColumns;
      }
      down_tiles<format>(in, scales, tiles);
      for (size_t column = 0; column < kPadColumns; ++column) {
        check_pair(format, "down", tiles + column / kLanes * kAmxTileBytes, column % kLanes, w.at(r, c + column),
                   w.at(r + 1, c + column));
      }
    }
  }
}

template <Format format>
void test_format() {
  if constexpr (is_quantized(format)) {
    std::mt19937 rng(1);
    const Stored w(format, kRows, kCols, rng);
    test_panel<format>(w);
    test_row<format>(w);
    test_down<format>(w);
  }
}

template <size_t... f>
void test_formats(std::index_sequence<f...>) {
  (test_format<static_cast<Format>(f)>(), ...);
}

}  // namespace

int main() {
  if (!has_avx512()) {
    std::printf("left out: avx512 is not supported here\n");
    return 0;
  }
  test_formats(std::make_index_sequence<kFormats>());
  return report(cases);
}
