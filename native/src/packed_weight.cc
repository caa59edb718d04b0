#include "packed_weight.h"

#include <array>

#include "half.h"

namespace prosparse {
namespace {

double float_weight(Format format, const uint8_t* data, size_t i) {
  switch (format) {
    case Format::kF16: return f16_to_float(reinterpret_cast<const uint16_t*>(data)[i]);
    case Format::kBF16: return bf16_to_float(reinterpret_cast<const uint16_t*>(data)[i]);
    default: return reinterpret_cast<const float*>(data)[i];
  }
}

double quantized_weight(Format format, uint16_t scale, uint32_t field) {
  const int value = level(format, field & ((1u << element_bits(format)) - 1)) - level_offset(format);
  return static_cast<double>(f16_to_float(scale)) * value;
}

// word * N + field of a column within its line: the inverse of word_column.
size_t place_of(RowOrder order, Format format, size_t column) {
  using ByColumn = std::array<uint16_t, 8 * kGroupColumns>;
  static const auto places = [] {
    std::array<std::array<ByColumn, kFormats>, 2> all{};
    for (const RowOrder o : {RowOrder::kDot, RowOrder::kAxpy}) {
      for (const FormatSpec& f : kFormatSpecs) {
        const size_t N = fields(f.format);
        for (size_t place = 0; is_quantized(f.format) && place < N * kGroupColumns; ++place) {
          const size_t at = word_column(o, f.format, place / N, place % N);
          all[o == RowOrder::kDot][static_cast<size_t>(f.format)][at] = static_cast<uint16_t>(place);
        }
      }
    }
    return all;
  }();
  return places[order != RowOrder::kAxpy][static_cast<size_t>(format)][column];
}

}  // namespace

double panel_weight(const Panels& w, size_t row, size_t col) {
  const uint8_t* panel = w.data + row / kLanes * w.panel_bytes;
  const size_t lane = row % kLanes;
  if (!is_quantized(w.format)) return float_weight(w.format, panel, col * kLanes + lane);
  const size_t N = fields(w.format);
  panel += col / kPanelColumns * panel_step_bytes(w.format);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
  const uint32_t* lines = reinterpret_cast<const uint32_t*>(panel + kPanelColumns / kGroupColumns * kLanes * 2);
  const size_t line = col % kPanelColumns / (2 * N), place = col % (2 * N);
  const uint32_t field = lines[line * kLanes + lane] >> (place % 2 * 16 + place / 2 * element_bits(w.format));
  return quantized_weight(w.format, scales[col % kPanelColumns / kGroupColumns * kLanes + lane], field);
}

double row_weight(const Rows& w, RowOrder order, size_t row, size_t col) {
  const uint8_t* data = w.data + row * w.row_bytes;
  if (!is_quantized(w.format)) return float_weight(w.format, data, col);
  const size_t N = fields(w.format), group = col / kGroupColumns;
  const size_t place = place_of(order, w.format, col % (N * kGroupColumns));
  size_t lane = group / N * kLanes + place / N / 2;  // of the row
  if (group < w.lane_groups) {
    const size_t lines = group_lanes(w.format), own = lane % lines;
    lane = (group / kLanes * lines + own) * kLanes + group % kLanes;
  }
  const uint16_t word = reinterpret_cast<const uint16_t*>(data)[2 * lane + place / N % 2];
  return quantized_weight(w.format, w.scales(row)[group],
                          static_cast<uint32_t>(word) >> (place % N * element_bits(w.format)));
}

}  // namespace prosparse
