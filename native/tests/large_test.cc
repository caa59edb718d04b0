// Packing matrices beyond 2^31 bytes, in I8 and I4 beyond 2^31 elements too. Takes 2.5 GB of memory.
#include <algorithm>

#include "matrices.h"
#include "sparse_memory.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// Some rows are random, all others 0, in I4 too: their scales are. An address that lost its upper bits finds zeros.
void test_packing(Format format, bool as_panels, bool as_rows) {
  const size_t cols = 8192, row_bytes = cols * element_bits(format) / 8, groups = groups_of(cols);
  const size_t rows = (size_t{1} << 31) / row_bytes + 40;
  std::mt19937 rng(1);
  const size_t placed[] = {2, rows / 2 + 7, rows - 35, rows - 3};  // the last two lie beyond 2^31 bytes
  const Stored few(format, 4, cols, rng);
  const SparseMemory data(rows * row_bytes), scales(rows * groups * sizeof(uint16_t)), bias(rows * sizeof(float));
  for (size_t i = 0; i < 4; ++i) {
    std::memcpy(data.data() + placed[i] * row_bytes, &few.data[i * row_bytes], row_bytes);
    if (is_quantized(format))
      std::memcpy(scales.as<uint16_t>() + placed[i] * groups, &few.scales[i * groups], groups * sizeof(uint16_t));
    bias.as<float>()[placed[i]] = static_cast<float>(i + 1);
  }
  const Matrix matrix{format, data.data(), is_quantized(format) ? scales.data() : nullptr, rows, cols};
  const auto expect = [&](const char* what, const auto& weight, const float* biases) {
    for (size_t i = 0; i < 4; ++i) {
      for (size_t c = 0; c < cols; ++c) {
        ++cases;
        CHECK(weight(placed[i], c) == few.at(i, c), "%s %s: row %zu column %zu is packed wrongly",
              kFormatNames[static_cast<size_t>(format)], what, placed[i], c);
        CHECK(weight(placed[i] + 1, c) == 0.0, "%s %s: row %zu column %zu is not 0",
              kFormatNames[static_cast<size_t>(format)], what, placed[i] + 1, c);
      }
      CHECK(biases[placed[i]] == static_cast<float>(i + 1), "%s %s: bias %zu",
            kFormatNames[static_cast<size_t>(format)], what, placed[i]);
    }
  };
  if (as_panels) {
    Arena arena(panels_bytes(matrix));
    const Panels panels = pack_panels(matrix, bias.data(), arena, 2);
    expect("panels", [&](size_t r, size_t c) { return panel_weight(panels, r, c); }, panels.bias);
  }
  if (!as_rows) return;
  Arena arena(rows_bytes(matrix));  // the order of columns within a line has no part in where a row lies
  const Rows packed = pack_rows(matrix, bias.data(), RowOrder::kDot, arena, 2);
  expect("rows", [&](size_t r, size_t c) { return row_weight(packed, RowOrder::kDot, r, c); }, packed.bias);
}

}  // namespace

int main() {
  // Zeroing memory is what takes the time: F16 and BF16, the same code, share the work.
  for (const Format format : kAllFormats) test_packing(format, format != Format::kBF16, format != Format::kF16);
  return report(cases);
}
