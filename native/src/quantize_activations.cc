#include "quantize_activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace prosparse {
namespace {

// Tokens' arrays while they are written.
struct Quantized {
  int16_t *q, *q_dot;
  float* scale;
  int32_t *starts, *sums;
};

Quantized quantized_buffers(size_t count, size_t stride, Scratch& scratch) {
  const size_t groups = stride / kGroupColumns;
  return {scratch.q.get<int16_t>(count * stride), scratch.q_dot.get<int16_t>(count * stride),
          scratch.scale.get<float>(count * groups + kLanes), scratch.starts.get<int32_t>(count * stride / 2),
          scratch.sums.get<int32_t>(count * groups)};
}

// Whether token t, whose values begin at `row`, does without the fallback.
bool mark_range(const float* row, size_t count, size_t t, Scratch& scratch) {
  const bool in_range = is_in_range(row, count);
  scratch.needs_fallback[t].store(!in_range, std::memory_order_relaxed);
  scratch.is_nan[t] = !in_range && std::any_of(row, row + count, [](float value) { return std::isnan(value); });
  return in_range;
}

// Token t, whose values begin at `row`. Zeros where it needs the fallback.
void quantize_token(const Kernels& kernels, Format format, size_t lane_groups, const float* row, size_t stride,
                    size_t t, const Quantized& out, Scratch& scratch) {
  const size_t groups = stride / kGroupColumns;
  int16_t *q = out.q + t * stride, *q_dot = out.q_dot + t * stride;
  float* scale = out.scale + t * groups;
  int32_t *starts = out.starts + t * stride / 2, *sums = out.sums + t * groups;
  if (mark_range(row, stride, t, scratch))
    return kernels.quantize(row, stride, format, lane_groups, q, q_dot, scale, starts, sums);
  std::memset(q, 0, stride * sizeof(*q));
  std::memset(scale, 0, groups * sizeof(*scale));
  std::memset(q_dot, 0, stride * sizeof(*q_dot));
  std::memset(starts, 0, stride / 2 * sizeof(*starts));
  std::memset(sums, 0, groups * sizeof(*sums));
}

// Kernels::to_bf16x3 for every token in range, zeros for the others.
const uint8_t* split_into_bf16x3(const Kernels& kernels, const Tokens& tokens, const Parallel& parallel,
                                 Scratch& scratch) {
  const size_t count = tokens.count, bytes = bf16x3_bytes(kLanes, tokens.cols);
  uint8_t* tiles = scratch.bf16x3.get<uint8_t>(bf16x3_bytes(count, tokens.cols));
  const auto is_left_out = [&](size_t t) { return scratch.needs_fallback[t].load(std::memory_order_relaxed); };
  parallel_for(parallel, (count + kLanes - 1) / kLanes, [&](size_t tile) {
    uint8_t* out = tiles + tile * bytes;
    const size_t last = std::min(count, (tile + 1) * kLanes);
    bool is_full = last == (tile + 1) * kLanes;
    for (size_t t = tile * kLanes; t < last; ++t) is_full &= !is_left_out(t);
    if (!is_full) std::memset(out, 0, bytes);
    for (size_t t = tile * kLanes; t < last; ++t) {
      if (is_left_out(t)) continue;
      kernels.to_bf16x3(tokens.x + t * tokens.stride, tokens.cols, out + t % kLanes * kLineBytes);
    }
  });
  return tiles;
}

// Kernels::low_high_bytes, in place: `length` pairs of each of `group` interleaved tokens.
void split_low_high(int32_t* pairs, size_t group, size_t length, size_t fields_per_line) {
  const size_t half = fields_per_line / 2 * group;
  for (size_t line = 0; line < length * group; line += 2 * half) {
    for (size_t i = line; i < line + half; ++i) {
      const uint32_t a = static_cast<uint32_t>(pairs[i]), b = static_cast<uint32_t>(pairs[i + half]);
      const uint32_t bytes = 0x00ff00ffu;
      // high = (q - low) / 256 with low as a signed byte: add 128 to each word, keep its upper byte
      const auto high = [](uint32_t p) {
        return (((p & 0xffffu) + 128) >> 8 & 0xffu) | (((p >> 16) + 128) >> 8 & 0xffu) << 16;
      };
      pairs[i] = static_cast<int32_t>((a & bytes) | (b & bytes) << 8);
      pairs[i + half] = static_cast<int32_t>(high(a) | high(b) << 8);
    }
  }
}

// out[i * group + t] = in[t * length + i] for `group` tokens.
void interleave(const int32_t* in, size_t group, size_t length, int32_t* out) {
  for (size_t i = 0; i < length; i += 16) {
    const size_t end = std::min(length, i + 16);
    for (size_t t = 0; t < group; ++t) {
      for (size_t k = i; k < end; ++k) out[k * group + t] = in[t * length + k];
    }
  }
}

// Sets grouped_x and grouped_q.
void group_tokens(const Kernels& kernels, Format format, Tokens& tokens, const Parallel& parallel, Scratch& scratch) {
  tokens.grouped_x = tokens.x;
  tokens.grouped_q = reinterpret_cast<const int32_t*>(tokens.q);
  const size_t count = tokens.count, stride = tokens.stride;
  const bool integers = is_quantized(format) && count < kernels.of[static_cast<size_t>(format)].widen_tokens;
  const bool low_high_bytes = integers && kernels.low_high_bytes;
  if (count == 1 && !low_high_bytes) return;
  const size_t group = group_size(count, integers ? kernels.int_group : kernels.float_group);
  const size_t length = integers ? stride / 2 : stride;  // 32-bit elements of a token
  int32_t* grouped = scratch.grouped.get<int32_t>(count * length);
  const int32_t* in = integers ? tokens.grouped_q : reinterpret_cast<const int32_t*>(tokens.x);
  parallel_for(parallel, (count + group - 1) / group, [&](size_t g) {
    const size_t first = g * group;
    const size_t together = std::min(group, count - first);
    interleave(in + first * length, together, length, grouped + first * length);
    if (low_high_bytes) split_low_high(grouped + first * length, together, length, fields(format));
  });
  tokens.grouped_q = grouped;
  tokens.grouped_x = reinterpret_cast<const float*>(grouped);
}

}  // namespace

bool is_in_range(const float* values, size_t count) {
  bool in_range = true;
  for (size_t i = 0; i < count; ++i) in_range &= std::fabs(values[i]) < kFallbackFrom;
  return in_range;
}

Tokens quantize_activations(const Kernels& kernels, Format format, size_t panels, size_t lane_groups, const float* x,
                            size_t count, size_t cols, const Parallel& parallel, Scratch& scratch) {
  const bool quantized = is_quantized(format);
  Tokens tokens{};
  tokens.count = count;
  tokens.cols = cols;
  tokens.stride = round_up(cols, quantized ? kPadColumns : kLanes);
  if (!quantized && count > 1 && tokens.stride % kL1WayFloats == 0) tokens.stride += kLanes;
  const size_t stride = tokens.stride;
  float* padded = stride != cols ? scratch.x.get<float>(count * stride) : nullptr;
  tokens.x = padded != nullptr ? padded : x;
  const size_t bf16x3_tokens = kernels.of[static_cast<size_t>(format)].bf16x3_tokens;
  const bool bf16x3 = bf16x3_tokens != 0 && count >= bf16x3_tokens;
  const Quantized out = quantized ? quantized_buffers(count, stride, scratch) : Quantized{};
  parallel_for(parallel, count, [&](size_t t) {
    scratch.needs_fallback[t].store(false, std::memory_order_relaxed);
    scratch.is_nan[t] = false;
    if (padded != nullptr) {
      std::memcpy(padded + t * stride, x + t * cols, cols * sizeof(float));
      std::memset(padded + t * stride + cols, 0, (stride - cols) * sizeof(float));
    }
    const float* row = tokens.x + t * stride;
    if (quantized) {
      quantize_token(kernels, format, lane_groups, row, stride, t, out, scratch);
    } else if (bf16x3 && !is_in_range(row, cols)) {
      scratch.needs_fallback[t].store(true, std::memory_order_relaxed);
    }
  });
  tokens.q = out.q;
  tokens.q_dot = out.q_dot;
  tokens.scale = out.scale;
  tokens.starts = out.starts;
  tokens.sums = out.sums;
  if (bf16x3) {
    tokens.bf16x3 = split_into_bf16x3(kernels, tokens, parallel, scratch);
    tokens.amx_sums = scratch.amx_sums.get<float>(panels * amx_sums_floats(count));
  } else {
    group_tokens(kernels, format, tokens, parallel, scratch);
  }
  return tokens;
}

DotTokens round_to_bytes(const DotKernels& run, const float* x, size_t count, size_t cols, DotUse use,
                         size_t lane_groups, const Parallel& parallel, Scratch& scratch) {
  const bool rows = use != DotUse::kPanels, shared = use == DotUse::kSharedRows;
  const size_t group = group_size(count, run.group), groups = groups_of(cols),
               row_bytes = rows ? run.row_bytes(cols) : 0;
  uint8_t* const q = scratch.q.get<uint8_t>(count * groups * run.group_bytes);
  float* const scale = scratch.scale.get<float>(count * groups);
  int32_t* const start = scratch.starts.get<int32_t>(count * groups);
  uint8_t* const wide = scratch.bf16x3.get<uint8_t>(count * row_bytes);
  uint8_t* const row_q = shared ? scratch.transposed.get<uint8_t>(count * groups * run.group_bytes) : nullptr;
  parallel_for(parallel, (count + group - 1) / group, [&](size_t i) {
    const size_t first = i * group, own = std::min(group, count - first);
    const float* in[kMaxDotTokens] = {};
    for (size_t t = first; t < first + own; ++t) {
      const bool in_range = mark_range(x + t * cols, cols, t, scratch);
      if (in_range) in[t - first] = x + t * cols;
    }
    run.to_bytes(in, own, cols, lane_groups, q + first * groups * run.group_bytes, scale + first * groups,
                 start + first * groups, rows ? wide + first * row_bytes : nullptr,
                 shared ? row_q + first * groups * run.group_bytes : nullptr);
  });
  return {&run, count, group, groups, q, scale, start, wide, row_bytes, row_q};
}

}  // namespace prosparse
