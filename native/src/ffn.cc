#include "ffn.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "dispatch.h"
#include "dot_ffn.h"
#include "gate_gemm.h"
#include "in_batches.h"
#include "quantize_activations.h"
#include "tiled_ffn.h"

namespace prosparse {
namespace {

// Threads that end early take what is left, so some parts more than threads. Rows of down_proj are cut by columns:
// short parts of rows cost the memory system time, so that only long rows have more parts than there are threads. No
// result depends on the cut.
constexpr size_t kDownBytes = 512;        // least bytes of a row's part
constexpr size_t kSpareDownBytes = 1024;  // where there are more parts than threads
constexpr size_t kUpRows = 32;            // least rows of a part of up_proj
// Several tokens in quantized formats share rows of up_proj and down_proj that stay in the L2 cache.
constexpr size_t kCachedRows = 256;
constexpr size_t kCachedBytes = size_t{512} << 10;

// Rows that tokens of a call have read, of kCachedRows from `first` on.
class RowsRead {
 public:
  explicit RowsRead(size_t first) : first_(first) {}

  // How often to prefetch the rows of a range of a token's list, which it reads next.
  int prefetches(const TokenBatch& batch, size_t token, Range list) {
    const int32_t* const rows = batch.active + token * batch.list_stride;
    size_t fresh = 0;
    for (size_t i = list.begin; i < list.end; ++i)
      fresh += !std::exchange(is_read_[static_cast<size_t>(rows[i]) - first_], true);
    return is_worth_prefetching(fresh, list.end - list.begin) ? batch.prefetches : 0;
  }

 private:
  size_t first_;
  bool is_read_[kCachedRows] = {};
};

void run_up(const TokenBatch& batch) {
  const Ffn& ffn = batch.ffn;
  const Scratch& scratch = batch.scratch;
  const size_t tokens = batch.x.count;
  if (tokens == 1) {  // cut by count, so that clusters of active neurons do not matter
    const size_t count = scratch.counts[0], pieces = std::clamp<size_t>(count / kUpRows, 1, scratch.parts_to_claim());
    parallel_for(batch.parallel, pieces,
                 [&](size_t i) { batch.compute_up(0, piece(count, pieces, i, 4), 0, ffn.d_model, batch.prefetches); });
  } else {
    const size_t part = round_up(kCachedBytes / kCachedRows * 8 / element_bits(ffn.up.format), kLanes * kGroupColumns),
                 cols = batch.bytes != nullptr ? ffn.d_model : part;
    parallel_for(batch.parallel, (ffn.d_ff + kCachedRows - 1) / kCachedRows, [&](size_t i) {
      for (size_t col = 0; col < ffn.d_model; col += cols) {
        RowsRead read(i * kCachedRows);
        for (size_t t = 0; t < tokens; ++t) {
          const Range list = batch.list_range(t, i * kCachedRows, (i + 1) * kCachedRows);
          batch.compute_up(t, list, col, std::min(cols, ffn.d_model - col), read.prefetches(batch, t, list));
        }
      }
    });
  }
  parallel_for(batch.parallel, tokens,
               [&](size_t t) { batch.mark_fallback(t, batch.h + t * batch.list_stride, scratch.counts[t]); });
}

void run_down(const TokenBatch& batch, size_t pieces, size_t column_multiple) {
  const size_t tokens = batch.x.count;
  parallel_for(batch.parallel, pieces, [&](size_t i) {
    const Range columns = piece(batch.ffn.d_model, pieces, i, column_multiple);
    if (columns.begin == columns.end) return;
    batch.start_down(columns);
    if (tokens == 1) return batch.add_down(0, {0, batch.scratch.counts[0]}, columns, i, batch.prefetches);
    for (size_t first = 0; first < batch.ffn.d_ff; first += kCachedRows) {
      RowsRead read(first);
      for (size_t t = 0; t < tokens; ++t) {
        const Range list = batch.list_range(t, first, first + kCachedRows);
        batch.add_down(t, list, columns, i, read.prefetches(batch, t, list));
      }
    }
  });
}

void run_batch(TokenBatch& batch, size_t down_pieces, size_t column_multiple) {
  parallel_for(batch.parallel, batch.pieces, [&](size_t i) { batch.compute_gate(i); });
  parallel_for(batch.parallel, batch.x.count, [&](size_t t) { batch.list_active(t); });
  if (batch.tiles != nullptr) return run_tiled(batch);
  if (batch.ffn.gated) run_up(batch);
  run_down(batch, down_pieces, column_multiple);
}

// As the scalar kernels read them.
Tokens plain_tokens(const float* x, size_t count, size_t cols) {
  Tokens tokens{};
  tokens.x = x;
  tokens.count = count;
  tokens.cols = tokens.stride = cols;
  return tokens;
}

// A NaN in x makes every output NaN. The scalar kernels would take seconds to find that.
void fill_nan(const Scratch& scratch, size_t tokens, float* y, size_t y_stride, size_t cols) {
  for (size_t t = 0; t < tokens; ++t) {
    if (scratch.is_nan[t]) std::fill_n(y + t * y_stride, cols, std::numeric_limits<float>::quiet_NaN());
  }
}

size_t down_parts(const Ffn& ffn, const Scratch& scratch) {
  const size_t bytes = ffn.down.row_bytes;
  return std::max(std::clamp<size_t>(bytes / kDownBytes, 1, scratch.threads),
                  std::clamp<size_t>(bytes / kSpareDownBytes, 1, scratch.parts_to_claim()));
}

void run(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y, const Parallel& parallel,
         Scratch& scratch, const DotKernels* dot) {
  const bool quantized = is_quantized(ffn.down.format);
  const size_t multiple = quantized ? kPadColumns : 64;
  const size_t down_pieces = down_parts(ffn, scratch);
  const size_t most = std::min(tokens, kBatchTokens), pieces = scratch.pieces();
  const bool tiled = !quantized && tokens > 1;
  const size_t padded =
      round_up(ffn.d_model, quantized ? kPadColumns : kLanes) + (tiled && ffn.d_model % kL1WayFloats == 0 ? kLanes : 0);
  const size_t z_stride = round_up(ffn.d_ff, 2 * kLanes), list_stride = ffn.d_ff + kLanes;
  const size_t piece_columns = round_up((ffn.d_model + down_pieces - 1) / down_pieces, multiple);
  const size_t work_bytes = quantized ? round_up(scatter_axpy_work_bytes(piece_columns), kLineBytes) : 0;
  float* y_padded = padded != ffn.d_model ? scratch.y.get<float>(most * padded) : nullptr;
  const Tiles tiles = tiled ? Tiles(ffn, most, pieces, scratch) : Tiles();
  for (size_t first = 0; first < tokens; first += kBatchTokens) {
    const size_t count = std::min(kBatchTokens, tokens - first);
    float* out = y + first * ffn.d_model;
    const float* const in = x + first * ffn.d_model;
    DotTokens bytes{};
    if (dot != nullptr)
      bytes = round_to_bytes(*dot, in, count, ffn.d_model, ffn.gated ? DotUse::kRows : DotUse::kPanels,
                             ffn.up.lane_groups, parallel, scratch);
    TokenBatch batch{kernels,
                     ffn,
                     parallel,
                     scratch,
                     pieces,
                     dot != nullptr
                         ? plain_tokens(in, count, ffn.d_model)
                         : quantize_activations(kernels, ffn.gate.format, ffn.gate.count(), ffn.up.lane_groups, in,
                                                count, ffn.d_model, parallel, scratch),
                     y_padded != nullptr ? y_padded : out,
                     padded,
                     z_stride,
                     list_stride,
                     work_bytes,
                     scratch.z.get<float>(most * z_stride),
                     scratch.a.get<float>(most * list_stride),
                     scratch.h.get<float>(most * list_stride),
                     scratch.active.get<int32_t>(most * list_stride),
                     scratch.work.get<uint8_t>(work_bytes * down_pieces),
                     row_prefetches(ffn.d_model),
                     tiled ? &tiles : nullptr,
                     dot != nullptr ? &bytes : nullptr};
    run_batch(batch, down_pieces, multiple);
    fill_nan(scratch, count, batch.y, padded, ffn.d_model);
    if (y_padded != nullptr) {
      for (size_t t = 0; t < count; ++t) std::copy_n(y_padded + t * padded, ffn.d_model, out + t * ffn.d_model);
    }
  }
}

void run_panels(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                const Parallel& parallel, Scratch& scratch) {
  const size_t padded = w.count() * kLanes;
  float* z = padded != w.rows ? scratch.z.get<float>(std::min(tokens, kBatchTokens) * padded) : nullptr;
  for (size_t first = 0; first < tokens; first += kBatchTokens) {
    const size_t count = std::min(kBatchTokens, tokens - first);
    const Tokens prepared =
        quantize_activations(kernels, w.format, w.count(), 0, x + first * cols, count, cols, parallel, scratch);
    float* out = y + first * w.rows;
    const size_t pieces = scratch.pieces();
    parallel_for(parallel, pieces, [&](size_t i) {
      const Range panels = piece(w.count(), pieces, i, 2);
      gate_gemm(kernels, w, panels.begin, panels.end, prepared, nullptr, scratch, z != nullptr ? z : out, padded);
    });
    fill_nan(scratch, count, z != nullptr ? z : out, padded, w.rows);
    for (size_t t = 0; t < count && z != nullptr; ++t) std::copy_n(z + t * padded, w.rows, out + t * w.rows);
  }
}

// The DotKernels that take so many tokens at level 0, or null, also where AMX takes over.
const DotKernels* by_dots(const Kernels& kernels, Format format, size_t tokens) {
  const FormatKernels& of = kernels.of[static_cast<size_t>(format)];
  const bool tiles = of.bf16x3_tokens != 0 && tokens >= of.bf16x3_tokens;
  return of.exact.tokens != 0 && tokens >= of.exact.tokens && !tiles ? &of.exact : nullptr;
}

// Tokens of a last batch that is too small for AMX, but not for DotKernels: it is a call of its own.
size_t rest_by_dots(const Kernels& kernels, Format format, size_t tokens) {
  const size_t rest = tokens % kBatchTokens;
  const bool own = tokens > kBatchTokens && by_dots(kernels, format, tokens) == nullptr;
  return own && by_dots(kernels, format, rest) != nullptr ? rest : 0;
}

}  // namespace

void run_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y, const Parallel& parallel,
             Scratch& scratch) {
  if (const size_t rest = rest_by_dots(kernels, ffn.gate.format, tokens)) {
    const size_t whole = tokens - rest, at = whole * ffn.d_model;
    run_ffn(kernels, ffn, x, whole, y, parallel, scratch);
    return run_ffn(kernels, ffn, x + at, rest, y + at, parallel, scratch);
  }
  const DotKernels* const dot = by_dots(kernels, ffn.gate.format, tokens);
  if (dot == nullptr || tokens < batch_tokens(*dot)) return run(kernels, ffn, x, tokens, y, parallel, scratch, dot);
  const size_t width = ffn.d_model;
  in_batches(
      tokens, kBatchTokens, scratch,
      [&](size_t first, size_t count) {
        run_dot_batch(kernels, &FormatKernels::exact, ffn, x + first * width, count, y + first * width, parallel,
                      scratch);
      },
      [&](size_t t) { run(kernels, ffn, x + t * width, 1, y + t * width, parallel, scratch, nullptr); });
}

void run_ffn_by_bytes(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
                      const Parallel& parallel, Scratch& scratch) {
  run(kernels, ffn, x, tokens, y, parallel, scratch, &dot_kernels(kernels, ffn.gate.format, &FormatKernels::dot));
}

void run_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                const Parallel& parallel, Scratch& scratch) {
  if (const size_t rest = rest_by_dots(kernels, w.format, tokens)) {
    const size_t whole = tokens - rest;
    run_linear(kernels, w, x, whole, cols, y, parallel, scratch);
    return run_linear(kernels, w, x + whole * cols, rest, cols, y + whole * w.rows, parallel, scratch);
  }
  if (by_dots(kernels, w.format, tokens) == nullptr)
    return run_panels(kernels, w, x, tokens, cols, y, parallel, scratch);
  linear_in_batches(
      w, x, tokens, kBatchTokens, cols, y, scratch,
      [&](const float* in, size_t count, float* z, size_t z_stride) {
        multiply_dot_batch(kernels, &FormatKernels::exact, w, in, count, cols, z, z_stride, parallel, scratch);
      },
      [&](const float* in, float* out) { run_panels(kernels, w, in, 1, cols, out, parallel, scratch); });
}

}  // namespace prosparse
