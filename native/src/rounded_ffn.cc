#include "rounded_ffn.h"

#include <algorithm>
#include <numeric>

#include "dispatch.h"
#include "dot_ffn.h"
#include "in_batches.h"
#include "quantize_activations.h"
#include "silu.h"

namespace prosparse {
namespace {

constexpr size_t kPair = 2 * kLanes;  // rows of a step of down_proj
constexpr size_t kStepPieces = 16;    // of an FFN: steps end with them, so that they must not depend on threads
// Below this share of active neurons, few tokens are computed one by one: tiles compute what any of them needs.
// Measured on a Xeon.
constexpr size_t kFewPercent = 25;
constexpr size_t kSampledPanels = 8;  // which tell the share

const RoundedKernels& rounded(const Kernels& kernels, Format format) {
  return kernels.of[static_cast<size_t>(format)].rounded;
}

// Tokens out of range are zeros here; the exact kernels compute them. has_up: for up_proj too.
Bf16Tokens to_tiles(const RoundedKernels& run, const float* x, size_t count, size_t cols, bool has_up,
                    const Parallel& parallel, Scratch& scratch) {
  const size_t steps = round_up(cols, kPadColumns) / kBf16Step, tiles = (count + kLanes - 1) / kLanes,
               bytes = bf16_tokens_bytes(steps, tiles);
  uint8_t* left = run.panels_are_left ? nullptr : scratch.bf16x3.get<uint8_t>(bytes);
  uint8_t* right = has_up || run.panels_are_left ? scratch.transposed.get<uint8_t>(bytes) : nullptr;
  parallel_for(parallel, tiles, [&](size_t tile) {
    const float* rows[kLanes] = {};
    for (size_t t = tile * kLanes; t < std::min(count, (tile + 1) * kLanes); ++t) {
      const bool in_range = run.is_in_range(x + t * cols, cols);
      scratch.needs_fallback[t].store(!in_range, std::memory_order_relaxed);
      if (in_range) rows[t % kLanes] = x + t * cols;
    }
    run.to_tiles(rows, cols, steps, tiles, left != nullptr ? left + tile * kBf16Bytes : nullptr,
                 right != nullptr ? right + tile * kBf16Bytes : nullptr);
  });
  return {count, cols, steps, left, right};
}

// Whether few neurons are active, by some of gate_proj's panels.
bool few_are_active(const RoundedKernels& run, const Ffn& ffn, const Bf16Tokens& x, const Parallel& parallel) {
  if (ffn.dense) return false;
  const size_t panels = ffn.gate.count(), samples = std::min(panels, kSampledPanels);
  size_t active[kSampledPanels] = {}, sampled[kSampledPanels] = {};
  parallel_for(parallel, samples, [&](size_t i) {
    alignas(kLineBytes) float z[kLanes * kMaxBf16Tokens], a[kMaxBf16Tokens];
    const size_t panel = i * panels / samples, stride = round_up(x.count, kLanes);
    const bool by_magnitude = ffn.activation == Activation::kSilu;
    run.gate(ffn.gate, panel, panel + 1, x, z, stride);
    for (size_t k = 0; k < std::min(kLanes, ffn.d_ff - panel * kLanes); ++k) {
      if (by_magnitude) silu(z + k * stride, x.count);
      run.activate(z + k * stride, x.count, ffn.threshold, by_magnitude, false, a);
      active[i] += x.count - static_cast<size_t>(std::count(a, a + x.count, 0.0f));
      sampled[i] += x.count;
    }
  });
  return std::accumulate(active, active + samples, size_t{0}) * 100 <
         std::accumulate(sampled, sampled + samples, size_t{0}) * kFewPercent;
}

// Of the first rows that up_proj reads; it prefetches the others while it multiplies.
void prefetch_row(const uint8_t* row, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(row + at, 0, 2);
}

// Runs gate_proj and up_proj of a range of neurons, a block at a time so that activations stay in the cache.
class Neurons {
 public:
  Neurons(const RoundedKernels& run, const Ffn& ffn, const Bf16Tokens& x, const Bf16Hidden& h, int32_t* rows,
          float* work)
      : run_(run), ffn_(ffn), x_(x), h_(h), rows_(rows), z_(work), a_(work + kBlock * h.a_stride) {}

  // Of panels [begin, end). Fills steps from `first` on and returns how many.
  size_t compute(Range panels, size_t first) {
    for (size_t panel = panels.begin; panel < panels.end; panel += kBlock / kLanes) {
      const size_t last = std::min(panels.end, panel + kBlock / kLanes);
      run_.gate(ffn_.gate, panel, last, x_, z_, h_.a_stride);
      for (size_t k = panel * kLanes; k < std::min(ffn_.d_ff, last * kLanes); ++k)
        add(k, z_ + (k - panel * kLanes) * h_.a_stride, first);
      flush(first, pending_ / kPair);
    }
    if (pending_ != 0) flush(first, 1);
    return done_;
  }

  static size_t work_floats(size_t a_stride) { return (2 * kBlock + kPair) * a_stride; }

 private:
  static constexpr size_t kBlock = 128;  // neurons of gate_proj at a time

  // Keeps neuron k if any token uses it.
  void add(size_t k, float* z, size_t first) {
    const bool by_magnitude = ffn_.activation == Activation::kSilu;
    if (by_magnitude) silu(z, h_.tokens);
    const bool used = run_.activate(z, h_.tokens, ffn_.threshold, by_magnitude, ffn_.activation == Activation::kRelu2,
                                    a_ + pending_ * h_.a_stride);
    if (!used && !ffn_.dense) return;
    rows_[(first + done_) * kPair + pending_] = static_cast<int32_t>(k);
    if (ffn_.gated && pending_ < kPair) prefetch_row(ffn_.up.row(k), ffn_.up.row_bytes);
    ++pending_;
  }

  // Computes the first `count` steps of what is pending.
  void flush(size_t first, size_t count) {
    Bf16Step steps[(kBlock + kPair) / kPair];
    for (size_t i = 0; i < count; ++i) {
      int32_t* const rows = rows_ + (first + done_ + i) * kPair;
      const size_t own = std::min(kPair, pending_ - i * kPair);
      std::fill(rows + own, rows + kPair, rows[0]);
      steps[i] = {rows, own, first + done_ + i, a_ + i * kPair * h_.a_stride};
    }
    if (count != 0 && ffn_.gated) run_.up(ffn_.up, x_, steps, count, h_);
    if (count != 0 && !ffn_.gated) run_.hidden(steps, count, h_);
    done_ += count;
    const size_t gone = std::min(pending_, count * kPair);
    std::copy(a_ + gone * h_.a_stride, a_ + pending_ * h_.a_stride, a_);
    pending_ -= gone;
  }

  const RoundedKernels& run_;
  const Ffn& ffn_;
  const Bf16Tokens& x_;
  const Bf16Hidden& h_;
  int32_t* rows_;
  float *z_, *a_;  // of a block; of the neurons that are pending
  size_t pending_ = 0, done_ = 0;
};

void run_batch(const Kernels& kernels, const Ffn& ffn, const float* x, size_t count, float* y, const Parallel& parallel,
               Scratch& scratch) {
  const RoundedKernels &run = rounded(kernels, ffn.gate.format), &down = rounded(kernels, ffn.down.format);
  const Bf16Tokens tokens = to_tiles(run, x, count, ffn.d_model, ffn.gated, parallel, scratch);
  if (count < batch_tokens(dot_kernels(kernels, ffn.gate.format, &FormatKernels::dot)) &&
      few_are_active(run, ffn, tokens, parallel)) {
    run_ffn_by_bytes(kernels, ffn, x, count, y, parallel, scratch);
    for (size_t t = 0; t < count; ++t) scratch.needs_fallback[t].store(false, std::memory_order_relaxed);  // done too
    return;
  }
  const size_t tiles = (count + kLanes - 1) / kLanes, a_stride = tiles * kLanes;
  const size_t pieces = kStepPieces, piece_panels = piece(ffn.gate.count(), pieces, 0, 2).end,
               piece_steps = (piece_panels + 1) / 2, steps = pieces * piece_steps,
               work = Neurons::work_floats(a_stride);
  int32_t* const rows = scratch.active.get<int32_t>(steps * (kPair + 1) + kPair);
  int32_t* const places = rows + steps * kPair + kPair;
  uint8_t* const left = scratch.h.get<uint8_t>(bf16_tokens_bytes(steps, tiles));
  float* const blocks = scratch.a.get<float>(pieces * work);
  Bf16Hidden h{
      rows, places, 0, steps, count, a_stride, left, scratch.needs_fallback, ffn.activation == Activation::kDrelu};
  size_t used[kStepPieces];
  parallel_for(parallel, pieces, [&](size_t i) {
    Neurons neurons(run, ffn, tokens, h, rows, blocks + i * work);
    used[i] = neurons.compute(piece(ffn.gate.count(), pieces, i, 2), i * piece_steps);
  });
  for (size_t i = 0; i < pieces; ++i) {
    for (size_t s = 0; s < used[i]; ++s) places[h.used++] = static_cast<int32_t>(i * piece_steps + s);
  }
  const size_t columns = (ffn.d_model + kPadColumns - 1) / kPadColumns;
  float* const sums = scratch.amx_sums.get<float>(columns * kPadColumns * tiles * kLanes);
  const size_t parts = std::min(columns, 2 * scratch.threads);  // short parts of rows cost the memory system time
  parallel_for(parallel, parts, [&](size_t i) {
    const Range part = piece(columns, parts, i, 1);
    if (part.begin < part.end) down.down(ffn.down, h, part.begin, part.end, sums, y, ffn.d_model);
  });
}

// z[t * z_stride + r] of up to kMaxBf16Tokens tokens by tiles.
void multiply_batch(const Kernels& kernels, const Panels& w, const float* x, size_t count, size_t cols, float* z,
                    size_t z_stride, const Parallel& parallel, Scratch& scratch) {
  const RoundedKernels& run = rounded(kernels, w.format);
  const Bf16Tokens prepared = to_tiles(run, x, count, cols, false, parallel, scratch);
  const size_t pieces = scratch.pieces();
  parallel_for(parallel, pieces, [&](size_t i) {
    const Range panels = piece(w.count(), pieces, i, 2);
    run.linear(w, panels.begin, panels.end, prepared, z, z_stride);
  });
}

// Whether kernels that begin at `least` tokens take so many.
bool takes(size_t least, size_t tokens) { return least != 0 && tokens >= least; }

}  // namespace

void run_rounded_ffn(const Kernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
                     const Parallel& parallel, Scratch& scratch) {
  const DotKernels& dot = dot_kernels(kernels, ffn.gate.format, &FormatKernels::dot);
  const bool tiles = takes(rounded(kernels, ffn.gate.format).tokens, tokens);
  if (!tiles && tokens < batch_tokens(dot)) return run_ffn_by_bytes(kernels, ffn, x, tokens, y, parallel, scratch);
  if (!tiles && dot.tokens == 0) return run_ffn(kernels, ffn, x, tokens, y, parallel, scratch);
  const size_t width = ffn.d_model;
  in_batches(
      tokens, tiles ? kMaxBf16Tokens : kBatchTokens, scratch,
      [&](size_t first, size_t count) {
        const float* const in = x + first * width;
        float* const out = y + first * width;
        if (tiles) return run_batch(kernels, ffn, in, count, out, parallel, scratch);
        run_dot_batch(kernels, &FormatKernels::dot, ffn, in, count, out, parallel, scratch);
      },
      [&](size_t t) { run_ffn(kernels, ffn, x + t * width, 1, y + t * width, parallel, scratch); });
}

void run_rounded_linear(const Kernels& kernels, const Panels& w, const float* x, size_t tokens, size_t cols, float* y,
                        const Parallel& parallel, Scratch& scratch) {
  const bool tiles = takes(rounded(kernels, w.format).tokens, tokens);
  if (!tiles && dot_kernels(kernels, w.format, &FormatKernels::dot).tokens == 0)
    return run_linear(kernels, w, x, tokens, cols, y, parallel, scratch);
  linear_in_batches(
      w, x, tokens, tiles ? kMaxBf16Tokens : kBatchTokens, cols, y, scratch,
      [&](const float* in, size_t count, float* z, size_t z_stride) {
        if (tiles) return multiply_batch(kernels, w, in, count, cols, z, z_stride, parallel, scratch);
        multiply_dot_batch(kernels, &FormatKernels::dot, w, in, count, cols, z, z_stride, parallel, scratch);
      },
      [&](const float* in, float* out) { run_linear(kernels, w, in, 1, cols, out, parallel, scratch); });
}

}  // namespace prosparse
