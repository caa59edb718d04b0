#include "ffn.h"

#include <algorithm>
#include <cmath>
#include <thread>

namespace prosparse {
namespace {

// 16 pieces keep a few threads busy to the end. Rows of down_proj are cut by columns, into as few parts as
// there are threads: short parts of rows cost the memory system time (i8 a quarter more in two, 7B shape).
// A part has 512 bytes at least. No result depends on the cut.
constexpr size_t kDownBytes = 512;
constexpr size_t kUpRows = 32;
// Several tokens work through tiles of rows that stay in the L2 cache.
constexpr size_t kTileRows = 128;
constexpr size_t kTileBytes = size_t{512} << 10;
constexpr size_t kFirstPrefetched = 1024;  // d_model below which rows are too short for prefetching to gain

struct Block {
  const Kernels& kernels;
  const Ffn& ffn;
  const Parallel& parallel;
  Scratch& scratch;
  Tokens x;
  float* y;
  size_t y_stride, z_stride, list_stride, work_bytes;
  float *z, *a, *h;
  int32_t* active;
  uint8_t* work;
  bool prefetch;

  const FormatKernels& fast() const { return kernels.of[static_cast<size_t>(ffn.down.format)]; }
  const FormatKernels& kernels_for(size_t token) const {
    return scratch.is_odd[token].load(std::memory_order_relaxed) ? kScalarKernels.of[static_cast<size_t>(ffn.down.format)] : fast();
  }

  void gate(size_t index) {
    scratch.ran_on[index] = std::this_thread::get_id();
    const Range panels = piece(ffn.gate.count(), kPieces, index, 2);
    stream_all(kernels, ffn.gate, panels.begin, panels.end, x, scratch, z, z_stride);
    if (ffn.activation != Activation::kSilu) return;
    const size_t first = panels.begin * kLanes, last = panels.end * kLanes;
    for (size_t t = 0; t < x.count; ++t) silu(z + t * z_stride + first, last - first);
  }

  // The list of active neurons of one token, and their activations.
  void list(size_t token) {
    int32_t* indices = active + token * list_stride;
    float *values = a + token * list_stride, *all = z + token * z_stride;
    size_t count = ffn.d_ff;
    const bool by_magnitude = ffn.activation == Activation::kSilu;
    if (ffn.dense) {
      for (size_t k = 0; k < count; ++k) {
        indices[k] = static_cast<int32_t>(k);
        values[k] = (by_magnitude ? std::fabs(all[k]) : all[k]) <= ffn.threshold ? 0.0f : all[k];
      }
    } else if (by_magnitude) {
      count = compact_magnitude(all, ffn.d_ff, ffn.threshold, indices, values);
    } else {
      count = kernels.compact(all, ffn.d_ff, ffn.threshold, indices, values);
    }
    if (ffn.activation == Activation::kRelu2) {
      for (size_t k = 0; k < count; ++k) values[k] *= values[k];
    }
    scratch.counts[token] = count;
    if (!ffn.gated) mark_odd(token, values, count);
  }

  void mark_odd(size_t token, const float* values, size_t count) {
    if (!is_quantised(ffn.down.format)) return;
    bool tame = true;
    for (size_t k = 0; k < count; ++k) tame &= std::fabs(values[k]) < kLargest;
    if (!tame) scratch.is_odd[token].store(true, std::memory_order_relaxed);
  }

  // h = a * v for part of one token's list; v has been summed over columns before `col`.
  void up(size_t token, Range list, size_t col, size_t cols) {
    const size_t at = token * list_stride + list.begin, count = list.end - list.begin;
    if (count == 0) return;
    kernels_for(token).dot(ffn.up, x, token, active + at, count, col, cols, prefetch, h + at);
    if (col + cols < ffn.d_model) return;
    if (ffn.activation == Activation::kDrelu) {
      for (size_t k = at; k < at + count; ++k) h[k] = h[k] <= 0.0f ? 0.0f : h[k];
    }
    for (size_t k = at; k < at + count; ++k) h[k] *= a[k];
  }

  // Adds part of one token's list to some columns of its result.
  void down(size_t token, Range list, Range columns, size_t index) {
    const size_t at = token * list_stride + list.begin;
    kernels_for(token).axpy(ffn.down, active + at, (ffn.gated ? h : a) + at, list.end - list.begin, columns.begin,
                            columns.end - columns.begin, prefetch, y + token * y_stride + columns.begin,
                            work + index * work_bytes);
  }

  // The part of a token's list that lies in rows [first, last).
  Range part(size_t token, size_t first, size_t last) const {
    const int32_t *begin = active + token * list_stride, *end = begin + scratch.counts[token];
    const int32_t* from = std::lower_bound(begin, end, static_cast<int32_t>(first));
    const int32_t* to = std::lower_bound(from, end, static_cast<int32_t>(std::min(last, ffn.d_ff)));
    return {static_cast<size_t>(from - begin), static_cast<size_t>(to - begin)};
  }

  void run(size_t down_pieces, size_t column_multiple) {
    parallel_for(parallel, kPieces, [this](size_t i) { gate(i); });
    std::sort(scratch.ran_on, scratch.ran_on + kPieces);
    const std::thread::id* end = std::unique(scratch.ran_on, scratch.ran_on + kPieces);
    scratch.threads = std::max(scratch.threads, static_cast<size_t>(end - scratch.ran_on));
    parallel_for(parallel, x.count, [this](size_t t) { list(t); });
    if (ffn.gated) {
      if (x.count == 1) {  // by count, so that clusters of active neurons do not matter
        const size_t count = scratch.counts[0], pieces = std::clamp<size_t>(count / kUpRows, 1, scratch.threads);
        parallel_for(parallel, pieces, [&](size_t i) { up(0, piece(count, pieces, i, 4), 0, ffn.d_model); });
      } else {
        const size_t cols = std::max<size_t>(kTileBytes / kTileRows * 8 / element_bits(ffn.up.format), kPadColumns);
        parallel_for(parallel, (ffn.d_ff + kTileRows - 1) / kTileRows, [&](size_t tile) {
          for (size_t col = 0; col < ffn.d_model; col += cols) {
            for (size_t t = 0; t < x.count; ++t) {
              up(t, part(t, tile * kTileRows, (tile + 1) * kTileRows), col, std::min(cols, ffn.d_model - col));
            }
          }
        });
      }
      parallel_for(parallel, x.count, [this](size_t t) { mark_odd(t, h + t * list_stride, scratch.counts[t]); });
    }
    parallel_for(parallel, down_pieces, [&](size_t i) {
      const Range columns = piece(ffn.d_model, down_pieces, i, column_multiple);
      if (columns.begin == columns.end) return;
      for (size_t t = 0; t < x.count; ++t) {
        std::copy(ffn.down.bias + columns.begin, ffn.down.bias + columns.end, y + t * y_stride + columns.begin);
      }
      if (x.count == 1) return down(0, {0, scratch.counts[0]}, columns, i);
      for (size_t first = 0; first < ffn.d_ff; first += kTileRows) {
        for (size_t t = 0; t < x.count; ++t) down(t, part(t, first, first + kTileRows), columns, i);
      }
    });
  }
};

}  // namespace

void run_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y, const Parallel& parallel,
             Scratch& scratch) {
  const bool quantised = is_quantised(ffn.down.format);
  const size_t multiple = quantised ? kPadColumns : 64;
  const size_t down_pieces = std::clamp<size_t>(ffn.down.row_bytes / kDownBytes, 1, std::max<size_t>(scratch.threads, tokens > 1 ? 4 : 1));
  const size_t most = std::min(tokens, kBlock);
  const size_t padded = round_up(ffn.d_model, quantised ? kPadColumns : kLanes);
  const size_t z_stride = round_up(ffn.d_ff, 2 * kLanes), list_stride = ffn.d_ff + kLanes;
  const size_t work_bytes = quantised ? round_up(axpy_work(round_up((ffn.d_model + down_pieces - 1) / down_pieces, multiple)), kLineBytes) : 0;
  float* y_padded = padded != ffn.d_model ? scratch.y.get<float>(most * padded) : nullptr;
  for (size_t first = 0; first < tokens; first += kBlock) {
    const size_t count = std::min(kBlock, tokens - first);
    float* out = y + first * ffn.d_model;
    Block block{kernels,
                ffn,
                parallel,
                scratch,
                prepare(kernels, ffn.down.format, x + first * ffn.d_model, count, ffn.d_model, parallel, scratch),
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
                ffn.d_model >= kFirstPrefetched};
    block.run(down_pieces, multiple);
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
    const Tokens block = prepare(kernels, w.format, x + first * cols, count, cols, parallel, scratch);
    float* out = y + first * w.rows;
    parallel_for(parallel, kPieces, [&](size_t i) {
      const Range panels = piece(w.count(), kPieces, i, 2);
      stream_all(kernels, w, panels.begin, panels.end, block, scratch, z != nullptr ? z : out, padded);
    });
    for (size_t t = 0; t < count && z != nullptr; ++t) std::copy_n(z + t * padded, w.rows, out + t * w.rows);
  }
}

}  // namespace prosparse
