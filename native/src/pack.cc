#include "pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "half.h"
#include "in_parallel.h"
#include "prosparse/kernels.h"

namespace prosparse {
namespace {

constexpr size_t kSlack = 2 * kLineBytes;  // vectors may read past the last scale or bias

// Element i of an array in a model file, which may begin at any byte.
template <class T>
T element(const void* array, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const uint8_t*>(array) + i * sizeof(T), sizeof(T));
  return value;
}

size_t panel_bytes(Format format, size_t cols) {
  if (!is_quantized(format)) return cols * kLanes * element_bits(format) / 8;
  return (cols + kPanelColumns - 1) / kPanelColumns * panel_part_bytes(format);
}

size_t line_columns(Format format) { return is_quantized(format) ? fields(format) * kQuantBlock : kLanes; }

// From one row to the next. Rows a multiple of 4 KiB apart would push each other out of the L1 cache.
size_t row_bytes(Format format, size_t cols) {
  const size_t bytes = round_up(cols, line_columns(format)) * element_bits(format) / 8;
  return bytes % 4096 == 0 ? bytes + kLineBytes : bytes;
}

size_t scale_stride(size_t cols) { return round_up(blocks_of(cols), kLanes); }

// The unsigned integers of one row of a model file, `cols` rounded up to 128 of them: padding is weight 0.
void read_row(const Matrix& w, size_t row, uint8_t* out) {
  if (w.format == Format::kI8) {
    const uint8_t* in = static_cast<const uint8_t*>(w.data) + row * w.cols;
    for (size_t c = 0; c < w.cols; ++c) out[c] = in[c] ^ 0x80;  // + 128
    std::memset(out + w.cols, 128, round_up(w.cols, 128) - w.cols);
    return;
  }
  const size_t bytes = blocks_of(w.cols) * kQuantBlock / 2;
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + row * bytes;
  for (size_t i = 0; i < bytes; ++i) {
    out[2 * i] = in[i] & 15;
    out[2 * i + 1] = in[i] >> 4;
  }
  std::memset(out + w.cols, 8, round_up(w.cols, 128) - w.cols);
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

// The bits of `word`, 32 bits of a row in a model file, as they lie in a lane of a panel's line.
template <Format format>
uint32_t lane_bits(uint32_t word) {
  if (format == Format::kI8) {
    word ^= 0x80808080;  // + 128
    return (word & 0xff0000ff) | (word & 0xff00) << 8 | (word >> 8 & 0xff00);
  }
  const auto squeezed = [](uint32_t bytes) {  // four nibbles from the low halves of four bytes
    bytes = (bytes | bytes >> 4) & 0x00ff00ff;
    return (bytes | bytes >> 8) & 0xffff;
  };
  return squeezed(word & 0x0f0f0f0f) | squeezed(word >> 4 & 0x0f0f0f0f) << 16;
}

// One row of a model file as lane_bits has it, in `count` words: padding is weight 0.
template <Format format>
void lane_words(const Matrix& w, size_t row, uint32_t* out, size_t count) {
  const size_t bytes = format == Format::kI8 ? w.cols : blocks_of(w.cols) * kQuantBlock / 2;
  uint8_t* stored = reinterpret_cast<uint8_t*>(out);
  std::memcpy(stored, static_cast<const uint8_t*>(w.data) + row * bytes, bytes);
  std::memset(stored + bytes, format == Format::kI8 ? 0 : 0x88, count * sizeof(uint32_t) - bytes);
  if (format == Format::kI4) {  // what the file has in its padding is nothing to us
    if (w.cols % 2 != 0) stored[w.cols / 2] = static_cast<uint8_t>((stored[w.cols / 2] & 15) | 0x80);
    std::memset(stored + (w.cols + 1) / 2, 0x88, bytes - (w.cols + 1) / 2);
  }
  for (size_t i = 0; i < count; ++i) out[i] = lane_bits<format>(out[i]);
}

template <Format format>
void interleave_integers(const Matrix& w, size_t panel, uint8_t* out) {
  constexpr size_t kLines = kPanelColumns / (2 * fields(format));
  const size_t stride = round_up(w.cols, kPanelColumns) * element_bits(format) / 32, blocks = blocks_of(w.cols);
  const size_t rows = std::min(kLanes, w.rows - panel * kLanes);
  std::vector<uint32_t> words(kLanes * stride,
                              field_offset(format) * (format == Format::kI8 ? 0x01010101u : 0x11111111u));
  for (size_t r = 0; r < rows; ++r) lane_words<format>(w, panel * kLanes + r, &words[r * stride], stride);
  for (size_t c = 0; c < w.cols; c += kPanelColumns) {
    uint16_t* scales = reinterpret_cast<uint16_t*>(out);
    for (size_t b = 0; b < 2; ++b) {
      const size_t block = c / kQuantBlock + b;
      for (size_t r = 0; r < rows && block < blocks; ++r) {
        scales[b * kLanes + r] = element<uint16_t>(w.scales, (panel * kLanes + r) * blocks + block);
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
      order == RowOrder::kDot ? kQuantBlock / N : kQuantBlock;  // words, and columns from field to field
  std::vector<uint8_t> integers(round_up(w.cols, 128));
  read_row(w, row, integers.data());
  uint16_t* words = reinterpret_cast<uint16_t*>(out);
  for (size_t c = 0; c < w.cols; c += N * kQuantBlock, words += kQuantBlock) {
    uint16_t line[kQuantBlock];
    for (size_t first = 0; first < kQuantBlock; first += kRun) {
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

template <Format format>
void lay_row(const Matrix& w, RowOrder order, size_t row, uint8_t* out) {
  return order == RowOrder::kDot ? lay_row<format, RowOrder::kDot>(w, row, out)
                                 : lay_row<format, RowOrder::kAxpy>(w, row, out);
}

// word * N + field of a column within its line: word_column the other way round.
size_t place_of(RowOrder order, Format format, size_t column) {
  static const auto places = [] {
    std::array<std::array<std::array<uint8_t, 4 * kQuantBlock>, 2>, 2> all{};
    for (const RowOrder o : {RowOrder::kDot, RowOrder::kAxpy}) {
      for (const Format f : {Format::kI8, Format::kI4}) {
        const size_t N = fields(f);
        for (size_t place = 0; place < N * kQuantBlock; ++place) {
          all[o == RowOrder::kDot][f == Format::kI8][word_column(o, f, place / N, place % N)] =
              static_cast<uint8_t>(place);
        }
      }
    }
    return all;
  }();
  return places[order == RowOrder::kDot][format == Format::kI8][column];
}

// Whether tiles can take these rows; see kernels.h. Numbers without their sign are in the order of their bits.
bool is_wild(const Matrix& w, size_t first, size_t last) {
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + first * w.cols * sizeof(uint16_t);
  const size_t count = (std::min(last, w.rows) - first) * w.cols;
  uint32_t most;
  std::memcpy(&most, &kSplitMostWeight, sizeof(most));
  const uint16_t limit = w.format == Format::kF16 ? 0x7c00 : static_cast<uint16_t>(most >> 16);
  bool wild = false;
  for (size_t i = 0; i < count; ++i) wild |= (element<uint16_t>(in, i) & 0x7fff) >= limit;
  return wild;
}

bool may_be_wild(Format format) { return format == Format::kF16 || format == Format::kBF16; }

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
  const size_t data = w.rows * row_bytes(w.format, w.cols);
  const size_t scales = is_quantized(w.format) ? w.rows * scale_stride(w.cols) * 2 : 0;
  return round_up(data + kSlack, kLineBytes) + round_up(scales + kSlack, kLineBytes) +
         bias_bytes(std::max(w.rows, w.cols)) + round_up(w.rows, kLineBytes);
}

Panels pack_panels(const Matrix& w, const void* bias, Arena& arena, unsigned threads) {
  Panels p{w.format, nullptr, nullptr, w.rows, w.cols, panel_bytes(w.format, w.cols), nullptr, stream_ahead(w.format)};
  uint8_t* data = arena.take(p.count() * p.panel_bytes + kSlack);
  uint8_t* wild = may_be_wild(w.format) ? arena.take(p.count()) : nullptr;
  in_parallel(p.count(), threads, [&](size_t i) {
    uint8_t* out = data + i * p.panel_bytes;
    if (wild != nullptr) wild[i] = is_wild(w, i * kLanes, (i + 1) * kLanes);
    switch (w.format) {
      case Format::kF32: return interleave(w, i, reinterpret_cast<uint32_t*>(out));
      case Format::kF16:
      case Format::kBF16: return interleave(w, i, reinterpret_cast<uint16_t*>(out));
      case Format::kI8: return interleave_integers<Format::kI8>(w, i, out);
      case Format::kI4: return interleave_integers<Format::kI4>(w, i, out);
    }
  });
  p.data = data;
  p.wild = wild;
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
  p.scale_stride = scale_stride(w.cols);
  uint8_t* data = arena.take(w.rows * p.row_bytes + kSlack);
  const size_t size = element_bits(w.format) / 8, blocks = blocks_of(w.cols);
  uint16_t* scales =
      is_quantized(w.format) ? reinterpret_cast<uint16_t*>(arena.take(w.rows * p.scale_stride * 2 + kSlack)) : nullptr;
  uint8_t* wild = may_be_wild(w.format) && order == RowOrder::kDot ? arena.take(w.rows) : nullptr;
  in_parallel(w.rows, threads, [&](size_t r) {
    uint8_t* out = data + r * p.row_bytes;
    if (wild != nullptr) wild[r] = is_wild(w, r, r + 1);
    if (scales != nullptr)
      std::memcpy(scales + r * p.scale_stride, static_cast<const uint8_t*>(w.scales) + r * blocks * 2, blocks * 2);
    if (w.format == Format::kI8) return lay_row<Format::kI8>(w, order, r, out);
    if (w.format == Format::kI4) return lay_row<Format::kI4>(w, order, r, out);
    std::memcpy(out, static_cast<const uint8_t*>(w.data) + r * w.cols * size, w.cols * size);
  });
  p.data = data;
  p.scales = scales;
  p.wild = wild;
  p.bias = order == RowOrder::kDot ? copy_bias(bias, w.rows, w.rows, arena)
                                   : copy_bias(bias, w.cols, round_up(w.cols, 128), arena);
  return p;
}

double panel_weight(const Panels& w, size_t row, size_t col) {
  const uint8_t* panel = w.data + row / kLanes * w.panel_bytes;
  const size_t lane = row % kLanes;
  switch (w.format) {
    case Format::kF32: return reinterpret_cast<const float*>(panel)[col * kLanes + lane];
    case Format::kF16: return f16_to_float(reinterpret_cast<const uint16_t*>(panel)[col * kLanes + lane]);
    case Format::kBF16: return bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[col * kLanes + lane]);
    default: break;
  }
  const size_t N = fields(w.format), bits = element_bits(w.format);
  panel += col / kPanelColumns * panel_part_bytes(w.format);
  const float scale =
      f16_to_float(reinterpret_cast<const uint16_t*>(panel)[col % kPanelColumns / kQuantBlock * kLanes + lane]);
  const size_t line = col % kPanelColumns / (2 * N), place = col % (2 * N);
  const uint32_t word = reinterpret_cast<const uint32_t*>(panel + 2 * kLanes * 2)[line * kLanes + lane];
  const int value = static_cast<int>(word >> (place % 2 * 16 + place / 2 * bits) & ((1u << bits) - 1));
  return static_cast<double>(scale) * (value - field_offset(w.format));
}

double row_weight(const Rows& w, RowOrder order, size_t row, size_t col) {
  const uint8_t* data = w.data + row * w.row_bytes;
  switch (w.format) {
    case Format::kF32: return reinterpret_cast<const float*>(data)[col];
    case Format::kF16: return f16_to_float(reinterpret_cast<const uint16_t*>(data)[col]);
    case Format::kBF16: return bf16_to_float(reinterpret_cast<const uint16_t*>(data)[col]);
    default: break;
  }
  const size_t N = fields(w.format), bits = element_bits(w.format), block = col / kQuantBlock;
  const size_t place = place_of(order, w.format, col % (N * kQuantBlock));
  const unsigned word = reinterpret_cast<const uint16_t*>(data + block / N * kLineBytes)[place / N];
  const int value = static_cast<int>(word >> (place % N * bits) & ((1u << bits) - 1));
  return static_cast<double>(f16_to_float(w.scales[row * w.scale_stride + block])) * (value - field_offset(w.format));
}

}  // namespace prosparse
