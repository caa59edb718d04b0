#include "ffn.h"

#include <algorithm>
#include <limits>
#include <thread>

#include "block.h"

namespace prosparse {
namespace {

// 16 pieces keep a few threads busy to the end. Rows of down_proj are cut by columns, into as few parts as
// there are threads: short parts of rows cost the memory system time (i8 a quarter more in two, 7B shape).
// A part has 512 bytes at least. No result depends on the cut.
constexpr size_t kDownBytes = 512;
constexpr size_t kUpRows = 32;
// Several tokens in quantized formats work through tiles of rows that stay in the L2 cache.
constexpr size_t kTileRows = 256;
constexpr size_t kTileBytes = size_t{512} << 10;
// d_model below which rows are too short for prefetching to gain. Measured by benchmarks/crossovers.py.
#ifndef PROSPARSE_FIRST_PREFETCHED
#define PROSPARSE_FIRST_PREFETCHED 1024
#endif
constexpr size_t kFirstPrefetched = PROSPARSE_FIRST_PREFETCHED;

void run_block(Block& block, size_t down_pieces, size_t column_multiple) {
  const Ffn& ffn = block.ffn;
  const Parallel& parallel = block.parallel;
  Scratch& scratch = block.scratch;
  const size_t tokens = block.x.count;
  parallel_for(parallel, kPieces, [&](size_t i) { block.gate(i); });
  std::sort(scratch.ran_on, scratch.ran_on + kPieces);
  const std::thread::id* end = std::unique(scratch.ran_on, scratch.ran_on + kPieces);
  scratch.threads = std::max(scratch.threads, static_cast<size_t>(end - scratch.ran_on));
  parallel_for(parallel, tokens, [&](size_t t) { block.list(t); });
  if (block.tiles != nullptr) return run_tiles(block);
  if (ffn.gated) {
    if (tokens == 1) {  // by count, so that clusters of active neurons do not matter
      const size_t count = scratch.counts[0], pieces = std::clamp<size_t>(count / kUpRows, 1, scratch.threads);
      parallel_for(parallel, pieces, [&](size_t i) { block.up(0, piece(count, pieces, i, 4), 0, ffn.d_model); });
    } else {
      const size_t cols = std::max<size_t>(kTileBytes / kTileRows * 8 / element_bits(ffn.up.format), kPadColumns);
      parallel_for(parallel, (ffn.d_ff + kTileRows - 1) / kTileRows, [&](size_t tile) {
        for (size_t col = 0; col < ffn.d_model; col += cols) {
          for (size_t t = 0; t < tokens; ++t) {
            block.up(t, block.part(t, tile * kTileRows, (tile + 1) * kTileRows), col,
                     std::min(cols, ffn.d_model - col));
          }
        }
      });
    }
    parallel_for(parallel, tokens,
                 [&](size_t t) { block.mark_odd(t, block.h + t * block.list_stride, scratch.counts[t]); });
  }
  parallel_for(parallel, down_pieces, [&](size_t i) {
    const Range columns = piece(ffn.d_model, down_pieces, i, column_multiple);
    if (columns.begin == columns.end) return;
    block.start(columns);
    if (tokens == 1) return block.down(0, {0, scratch.counts[0]}, columns, i);
    for (size_t first = 0; first < ffn.d_ff; first += kTileRows) {
      for (size_t t = 0; t < tokens; ++t) block.down(t, block.part(t, first, first + kTileRows), columns, i);
    }
  });
}

// A NaN times any weight is one: every neuron's z is, none is left out, and so is every result. The scalar kernels
// would take seconds to say so.
void fill_nan(const Scratch& scratch, size_t tokens, float* y, size_t y_stride, size_t cols) {
  for (size_t t = 0; t < tokens; ++t) {
    if (scratch.is_nan[t]) std::fill_n(y + t * y_stride, cols, std::numeric_limits<float>::quiet_NaN());
  }
}

}  // namespace

void run_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y, const Parallel& parallel,
             Scratch& scratch) {
  const bool quantized = is_quantized(ffn.down.format);
  const size_t multiple = quantized ? kPadColumns : 64;
  const size_t down_pieces = std::clamp<size_t>(ffn.down.row_bytes / kDownBytes, 1, scratch.threads);
  const size_t most = std::min(tokens, kBlock);
  const bool tiled = !quantized && tokens > 1;
  const size_t padded =
      round_up(ffn.d_model, quantized ? kPadColumns : kLanes) + (tiled && ffn.d_model % kWay == 0 ? kLanes : 0);
  const size_t z_stride = round_up(ffn.d_ff, 2 * kLanes), list_stride = ffn.d_ff + kLanes;
  const size_t work_bytes =
      quantized ? round_up(axpy_work(round_up((ffn.d_model + down_pieces - 1) / down_pieces, multiple)), kLineBytes)
                : 0;
  float* y_padded = padded != ffn.d_model ? scratch.y.get<float>(most * padded) : nullptr;
  const Tiles tiles = tiled ? Tiles(ffn, most, scratch) : Tiles();
  for (size_t first = 0; first < tokens; first += kBlock) {
    const size_t count = std::min(kBlock, tokens - first);
    float* out = y + first * ffn.d_model;
    Block block{kernels,
                ffn,
                parallel,
                scratch,
                prepare(kernels, ffn.gate.format, ffn.gate.count(), x + first * ffn.d_model, count, ffn.d_model,
                        parallel, scratch),
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
                ffn.d_model >= kFirstPrefetched,
                tiled ? &tiles : nullptr};
    run_block(block, down_pieces, multiple);
    fill_nan(scratch, count, block.y, padded, ffn.d_model);
    if (y_padded != nullptr) {
      for (size_t t = 0; t < count; ++t) std::copy_n(y_padded + t * padded, ffn.d_model, out + t * ffn.d_model);
    }
  }
}

void run_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                const Parallel& parallel, Scratch& scratch) {
  const size_t padded = w.count() * kLanes;
  float* z = padded != w.rows ? scratch.z.get<float>(std::min(tokens, kBlock) * padded) : nullptr;
  for (size_t first = 0; first < tokens; first += kBlock) {
    const size_t count = std::min(kBlock, tokens - first);
    const Tokens block = prepare(kernels, w.format, w.count(), x + first * cols, count, cols, parallel, scratch);
    float* out = y + first * w.rows;
    parallel_for(parallel, kPieces, [&](size_t i) {
      const Range panels = piece(w.count(), kPieces, i, 2);
      stream_all(kernels, w, panels.begin, panels.end, block, scratch, z != nullptr ? z : out, padded);
    });
    fill_nan(scratch, count, z != nullptr ? z : out, padded, w.rows);
    for (size_t t = 0; t < count && z != nullptr; ++t) std::copy_n(z + t * padded, w.rows, out + t * w.rows);
  }
}

}  // namespace prosparse
