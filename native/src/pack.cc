#include "pack.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "in_parallel.h"

namespace prosparse {
namespace {

constexpr size_t kSlack = 2 * kLineBytes;  // vectors may read past the last row or bias

// Element i of an array in a model file, which may begin at any byte.
template <class T>
T element(const void* array, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const uint8_t*>(array) + i * sizeof(T), sizeof(T));
  return value;
}

size_t panel_bytes(Format format, size_t cols) {
  if (!is_quantized(format)) return cols * kLanes * element_bits(format) / 8;
  return (cols + kPanelColumns - 1) / kPanelColumns * panel_step_bytes(format);
}

size_t lane_groups(size_t cols) { return groups_of(cols) / kLanes * kLanes; }

size_t line_columns(Format format) { return is_quantized(format) ? fields(format) * kGroupColumns : kLanes; }

// Bytes of a row's lines.
size_t data_bytes(Format format, size_t cols) {
  return round_up(cols, line_columns(format)) * element_bits(format) / 8;
}

// From one row to the next. Rows a multiple of 4 KiB apart would evict each other from the L1 cache.
size_t row_bytes(Format format, size_t cols) {
  const size_t scales = is_quantized(format) ? round_up(groups_of(cols) * sizeof(uint16_t), kLineBytes) : 0;
  const size_t bytes = data_bytes(format, cols) + scales;
  return bytes % 4096 == 0 ? bytes + kLineBytes : bytes;
}

// The unsigned integers of one row of a model file, `cols` rounded up to 128 of them: padding is weight 0.
template <Format format>
void read_row(const Matrix& w, size_t row, uint8_t* out) {
  constexpr size_t kBits = element_bits(format), kPerByte = 8 / kBits;
  constexpr unsigned kMask = (1u << kBits) - 1,
                     kAdded = static_cast<unsigned>(field_offset(format) - spec(format).stored_offset);
  const size_t bytes = stored_row_bytes(format, w.cols);
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + row * bytes;
  for (size_t i = 0; i < bytes; ++i) {
    for (size_t j = 0; j < kPerByte; ++j)
      out[kPerByte * i + j] = static_cast<uint8_t>(((in[i] >> (j * kBits)) + kAdded) & kMask);
  }
  std::memset(out + w.cols, field_offset(format), round_up(w.cols, 128) - w.cols);
}

template <class T>
void interleave(const Matrix& w, size_t panel, T* out) {
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + panel * kLanes * w.cols * sizeof(T);
  const size_t rows = std::min(kLanes, w.rows - panel * kLanes);
  for (size_t c = 0; c < w.cols; c += kLanes) {  // 16 x 16 at a time: what is read and written stays in the L1 cache
    const size_t width = std::min(kLanes, w.cols - c);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < width; ++i) out[(c + i) * kLanes + r] = element<T>(in, r * w.cols + c + i);
    }
  }
}

// The bits of `word`, 32 bits of a row in a model file, as they are in a lane of a panel's line.
template <Format format>
uint32_t lane_bits(uint32_t word) {
  static_assert(element_bits(format) == 8 || element_bits(format) == 4);
  if (element_bits(format) == 8) {
    word ^= 0x80808080;  // + 128
    return (word & 0xff0000ff) | (word & 0xff00) << 8 | (word >> 8 & 0xff00);
  }
  const auto squeezed = [](uint32_t bytes) {  // the low halves of four bytes side by side
    bytes = (bytes | bytes >> 4) & 0x00ff00ff;
    return (bytes | bytes >> 8) & 0xffff;
  };
  return squeezed(word & 0x0f0f0f0f) | squeezed(word >> 4 & 0x0f0f0f0f) << 16;
}

// A value of `bits` bits, in every place of 32 bits.
constexpr uint32_t repeated(int value, size_t bits) {
  return static_cast<uint32_t>(value) * (0xffffffffu / ((1u << bits) - 1));
}

// One row of a model file as lane_bits has it, in `count` words: padding is weight 0, whatever the file has there.
template <Format format>
void lane_words(const Matrix& w, size_t row, uint32_t* out, size_t count) {
  constexpr size_t kBits = element_bits(format), kPerByte = 8 / kBits;
  constexpr uint8_t kPadding = static_cast<uint8_t>(repeated(spec(format).stored_offset, kBits));
  const size_t bytes = stored_row_bytes(format, w.cols), used = (w.cols + kPerByte - 1) / kPerByte;
  uint8_t* stored = reinterpret_cast<uint8_t*>(out);
  std::memcpy(stored, static_cast<const uint8_t*>(w.data) + row * bytes, used);
  if (w.cols % kPerByte != 0) {
    const unsigned kept = (1u << w.cols % kPerByte * kBits) - 1;
    stored[used - 1] = static_cast<uint8_t>((stored[used - 1] & kept) | (kPadding & ~kept));
  }
  std::memset(stored + used, kPadding, count * sizeof(uint32_t) - used);
  for (size_t i = 0; i < count; ++i) out[i] = lane_bits<format>(out[i]);
}

template <Format format>
void interleave_integers(const Matrix& w, size_t panel, uint8_t* out) {
  constexpr size_t kLines = kPanelColumns / (2 * fields(format));
  const size_t stride = round_up(w.cols, kPanelColumns) * element_bits(format) / 32, groups = groups_of(w.cols);
  const size_t rows = std::min(kLanes, w.rows - panel * kLanes);
  std::vector<uint32_t> words(kLanes * stride, repeated(field_offset(format), element_bits(format)));
  for (size_t r = 0; r < rows; ++r) lane_words<format>(w, panel * kLanes + r, &words[r * stride], stride);
  for (size_t c = 0; c < w.cols; c += kPanelColumns) {
    uint16_t* scales = reinterpret_cast<uint16_t*>(out);
    for (size_t g = 0; g < kPanelColumns / kGroupColumns; ++g) {
      const size_t group = c / kGroupColumns + g;
      for (size_t r = 0; r < rows && group < groups; ++r) {
        scales[g * kLanes + r] = element<uint16_t>(w.scales, (panel * kLanes + r) * groups + group);
      }
    }
    uint32_t* lines = reinterpret_cast<uint32_t*>(out + 2 * kLanes * sizeof(uint16_t));
    const uint32_t* in = &words[c / kPanelColumns * kLines];
    for (size_t line = 0; line < kLines; ++line) {
      for (size_t r = 0; r < kLanes; ++r) lines[line * kLanes + r] = in[r * stride + line];
    }
    out = reinterpret_cast<uint8_t*>(lines + kLines * kLanes);
  }
}

// The order of word_column, in loops over neighbors.
template <Format format, RowOrder order>
void lay_row(const Matrix& w, size_t row, uint8_t* out) {
  constexpr size_t N = fields(format), kBits = element_bits(format);
  constexpr size_t kRun =
      order == RowOrder::kDot ? kGroupColumns / N : kGroupColumns;  // words, and columns from field to field
  std::vector<uint8_t> integers(round_up(w.cols, 128));
  read_row<format>(w, row, integers.data());
  uint16_t* words = reinterpret_cast<uint16_t*>(out);
  for (size_t c = 0; c < w.cols; c += N * kGroupColumns, words += kGroupColumns) {
    uint16_t line[kGroupColumns];
    for (size_t first = 0; first < kGroupColumns; first += kRun) {
      const uint8_t* q = &integers[c + first * N];
      for (size_t i = 0; i < kRun; ++i) {
        unsigned word = 0;
        for (size_t n = 0; n < N; ++n) word |= static_cast<unsigned>(q[n * kRun + i]) << (n * kBits);
        line[first + i] = static_cast<uint16_t>(word);
      }
    }
    if (order == RowOrder::kDot) {
      std::memcpy(words, line, sizeof(line));
      continue;
    }
    for (size_t four = 0; four < 4; ++four) {
      std::memcpy(words + 8 * four, line + 4 * four, 4 * sizeof(uint16_t));
      std::memcpy(words + 8 * four + 4, line + 16 + 4 * four, 4 * sizeof(uint16_t));
    }
  }
}

// From kDot to kLane, 16 groups at a time.
template <Format format>
void give_lanes(size_t groups, uint8_t* row) {
  constexpr size_t kLines = group_lanes(format);
  for (size_t g = 0; g < groups; g += kLanes, row += kLines * kLineBytes) {
    uint32_t in[kLines * kLanes], out[kLines * kLanes];
    std::memcpy(in, row, sizeof(in));
    for (size_t line = 0; line < kLines; ++line) {
      for (size_t lane = 0; lane < kLanes; ++lane) out[line * kLanes + lane] = in[lane * kLines + line];
    }
    std::memcpy(row, out, sizeof(out));
  }
}

template <Format format>
void pack_panel(const Matrix& w, size_t panel, uint8_t* out) {
  if constexpr (is_quantized(format)) {
    interleave_integers<format>(w, panel, out);
  } else {
    using T = std::conditional_t<element_bits(format) == 32, uint32_t, uint16_t>;
    interleave(w, panel, reinterpret_cast<T*>(out));
  }
}

template <Format format>
void pack_row(const Matrix& w, RowOrder order, size_t row, uint8_t* out) {
  if constexpr (is_quantized(format)) {
    if (order == RowOrder::kAxpy) return lay_row<format, RowOrder::kAxpy>(w, row, out);
    lay_row<format, RowOrder::kDot>(w, row, out);
    if (order == RowOrder::kLane) give_lanes<format>(lane_groups(w.cols), out);
  } else {
    const size_t bytes = stored_row_bytes(format, w.cols);
    std::memcpy(out, static_cast<const uint8_t*>(w.data) + row * bytes, bytes);
  }
}

struct Packer {
  void (*panel)(const Matrix&, size_t, uint8_t*);
  void (*row)(const Matrix&, RowOrder, size_t, uint8_t*);
};

template <size_t... f>
Packer packer_for(Format format, std::index_sequence<f...>) {
  static constexpr Packer packers[] = {{pack_panel<static_cast<Format>(f)>, pack_row<static_cast<Format>(f)>}...};
  return packers[static_cast<size_t>(format)];
}

Packer packer_for(Format format) { return packer_for(format, std::make_index_sequence<kFormats>()); }

// FormatSpec::bf16_limit. Without their sign, floats are in the order of their bits.
bool is_out_of_range(const Matrix& w, size_t first, size_t last) {
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + first * w.cols * sizeof(uint16_t);
  const size_t count = (std::min(last, w.rows) - first) * w.cols;
  const uint16_t limit = spec(w.format).bf16_limit;
  bool out_of_range = false;
  for (size_t i = 0; i < count; ++i) out_of_range |= (element<uint16_t>(in, i) & 0x7fff) >= limit;
  return out_of_range;
}

bool has_limit(Format format) { return spec(format).bf16_limit != 0; }

const float* copy_bias(const void* bias, size_t count, size_t padded, Arena& arena) {
  float* copy = reinterpret_cast<float*>(arena.take(padded * sizeof(float)));
  std::memcpy(copy, bias, count * sizeof(float));
  return copy;
}

size_t bias_bytes(size_t count) { return round_up(count, 128) * sizeof(float) + kLineBytes; }

}  // namespace

size_t panels_bytes(const Matrix& w) {
  return round_up(panel_bytes(w.format, w.cols) * ((w.rows + kLanes - 1) / kLanes) + kSlack, kLineBytes) +
         bias_bytes(w.rows) + round_up((w.rows + kLanes - 1) / kLanes, kLineBytes);
}

size_t rows_bytes(const Matrix& w) {
  return round_up(w.rows * row_bytes(w.format, w.cols) + kSlack, kLineBytes) + bias_bytes(std::max(w.rows, w.cols)) +
         round_up(w.rows, kLineBytes);
}

Panels pack_panels(const Matrix& w, const void* bias, Arena& arena, unsigned threads, bool rounded) {
  const size_t distance = prefetch_distance(w.format, rounded);
  Panels p{w.format, nullptr, nullptr, w.rows, w.cols, panel_bytes(w.format, w.cols), nullptr, distance};
  p.side_by_side = reads_side_by_side(p.panel_bytes);
  uint8_t* data = arena.take(p.count() * p.panel_bytes + kSlack);
  uint8_t* out_of_range = has_limit(w.format) ? arena.take(p.count()) : nullptr;
  const Packer packer = packer_for(w.format);
  in_parallel(p.count(), threads, [&](size_t i) {
    uint8_t* out = data + i * p.panel_bytes;
    if (out_of_range != nullptr) out_of_range[i] = is_out_of_range(w, i * kLanes, (i + 1) * kLanes);
    packer.panel(w, i, out);
  });
  p.data = data;
  p.out_of_range = out_of_range;
  p.bias = copy_bias(bias, w.rows, round_up(w.rows, kLanes), arena);
  return p;
}

Rows pack_rows(const Matrix& w, const void* bias, RowOrder order, Arena& arena, unsigned threads) {
  Rows p{};
  p.format = w.format;
  p.rows = w.rows;
  p.cols = w.cols;
  p.padded_cols = round_up(w.cols, line_columns(w.format));
  p.row_bytes = row_bytes(w.format, w.cols);
  p.scales_at = data_bytes(w.format, w.cols);
  p.lane_groups = order == RowOrder::kLane && is_quantized(w.format) ? lane_groups(w.cols) : 0;
  uint8_t* data = arena.take(w.rows * p.row_bytes + kSlack);
  const size_t scale_bytes = groups_of(w.cols) * sizeof(uint16_t);
  uint8_t* out_of_range = has_limit(w.format) && order != RowOrder::kAxpy ? arena.take(w.rows) : nullptr;
  const Packer packer = packer_for(w.format);
  in_parallel(w.rows, threads, [&](size_t r) {
    uint8_t* out = data + r * p.row_bytes;
    if (out_of_range != nullptr) out_of_range[r] = is_out_of_range(w, r, r + 1);
    if (is_quantized(w.format))
      std::memcpy(out + p.scales_at, static_cast<const uint8_t*>(w.scales) + r * scale_bytes, scale_bytes);
    packer.row(w, order, r, out);
  });
  p.data = data;
  p.out_of_range = out_of_range;
  p.bias = order == RowOrder::kAxpy ? copy_bias(bias, w.cols, round_up(w.cols, 128), arena)
                                    : copy_bias(bias, w.rows, w.rows, arena);
  return p;
}

}  // namespace prosparse
