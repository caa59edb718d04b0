#include "dot_ffn.h"

#include <algorithm>
#include <atomic>

#include "dot_neurons.h"
#include "quantize_activations.h"

namespace prosparse {
namespace {

// gate_proj is cut between blocks of neurons, which decide how sums are rounded: threads decide the cut.
constexpr size_t kBlockPanels = kDotBlock / kLanes;

Range neuron_panels(const Ffn& ffn, size_t pieces, size_t index) {
  return piece(ffn.gate.count(), pieces, index, kBlockPanels);
}

// Work space of the tasks that run at the same time: what a thread has just used is in its cache.
class WorkSlots {
 public:
  static constexpr size_t kMost = 64;

  explicit WorkSlots(size_t count) : free_(~uint64_t{0} >> (kMost - count)) {}

  // Waits where more than kMost tasks run.
  size_t take() {
    uint64_t free = free_.load(std::memory_order_relaxed);
    while (free == 0 || !free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
      if (free == 0) free = free_.load(std::memory_order_relaxed);
    }
    return static_cast<size_t>(__builtin_ctzll(free));
  }
  void give_back(size_t slot) { free_.fetch_or(uint64_t{1} << slot, std::memory_order_release); }

 private:
  std::atomic<uint64_t> free_;  // a bit per slot
};

// down_proj's input, and what it is written in.
struct Hidden {
  size_t count;  // pieces
  DotPiece pieces[kMostPieces];
  size_t most;  // tiles of a piece
  DotTile* tiles;
};

Hidden make_hidden(const Ffn& ffn, const DotKernels& down, size_t count, size_t pieces, Scratch& scratch) {
  const size_t panels = neuron_panels(ffn, pieces, 0).end, blocks = (panels * kLanes + kDotBlock - 1) / kDotBlock,
               rows = blocks * kDotBlock;
  const size_t most = blocks * ((kDotBlock + down.tile_rows - 1) / down.tile_rows);
  const size_t own = down.has_pairs ? rows / 2 + most : rows;  // entries of a token
  int32_t* const used = scratch.active.get<int32_t>(pieces * rows);
  DotEntry* const entries = scratch.h.get<DotEntry>(pieces * count * own);
  uint32_t* const ends = scratch.lists.get<uint32_t>(pieces * most * count);
  Hidden hidden{pieces, {}, most, scratch.tile_integers.get<DotTile>(pieces * most)};
  for (size_t i = 0; i < pieces; ++i)
    hidden.pieces[i] = {used + i * rows, entries + i * count * own, ends + i * most * count, hidden.tiles + i * most,
                        0};
  return hidden;
}

void run_down(const DotKernels& run, const Ffn& ffn, Hidden& hidden, size_t count, float* y, const Parallel& parallel,
              Scratch& scratch) {
  DotHidden h{count, 0, hidden.tiles};
  for (size_t i = 0; i < hidden.count; ++i) {
    std::copy_n(hidden.tiles + i * hidden.most, hidden.pieces[i].count, hidden.tiles + h.count);
    h.count += hidden.pieces[i].count;
  }
  const size_t columns = (ffn.d_model + kPadColumns - 1) / kPadColumns, sums = count * kPadColumns;
  const size_t pieces = std::min(columns, hidden.count);
  float* const work = scratch.z.get<float>(pieces * sums);
  parallel_for(parallel, pieces, [&](size_t i) {
    const Range part = piece(columns, pieces, i, 1);
    if (part.begin < part.end) run.down(ffn.down, h, part.begin, part.end, work + i * sums, y, ffn.d_model);
  });
}

}  // namespace

void run_dot_batch(const Kernels& kernels, DotLevel level, const Ffn& ffn, const float* x, size_t count, float* y,
                   const Parallel& parallel, Scratch& scratch) {
  const DotKernels& down = dot_kernels(kernels, ffn.down.format, level);
  const DotKernels& run = dot_kernels(kernels, ffn.gate.format, level);
  const DotUse use = !ffn.gated ? DotUse::kPanels : run.up_panels != nullptr ? DotUse::kSharedRows : DotUse::kRows;
  const DotTokens tokens = round_to_bytes(run, x, count, ffn.d_model, use, ffn.up.lane_groups, parallel, scratch);
  const LeftOut others = scratch.left_out(count);
  const size_t blocks = (ffn.gate.count() + kBlockPanels - 1) / kBlockPanels,
               pieces = std::min({2 * scratch.pieces(), blocks, kMostPieces});
  Hidden hidden = make_hidden(ffn, down, count, pieces, scratch);
  const size_t floats = dot_work_floats(count);
  const size_t most = std::min(pieces, WorkSlots::kMost);
  WorkSlots slots(most);
  bool most_are_used[WorkSlots::kMost] = {};
  float* const work = scratch.a.get<float>(most * floats);
  parallel_for(parallel, pieces, [&](size_t i) {
    const size_t slot = slots.take();
    run_dot_neurons(kernels, level, ffn, tokens, neuron_panels(ffn, pieces, i), others, work + slot * floats,
                    most_are_used[slot], hidden.pieces[i], scratch);
    slots.give_back(slot);
  });
  run_down(down, ffn, hidden, count, y, parallel, scratch);
}

void multiply_dot_batch(const Kernels& kernels, DotLevel level, const Panels& w, const float* x, size_t count,
                        size_t cols, float* z, size_t z_stride, const Parallel& parallel, Scratch& scratch) {
  const DotKernels& run = dot_kernels(kernels, w.format, level);
  const DotTokens prepared = round_to_bytes(run, x, count, cols, DotUse::kPanels, 0, parallel, scratch);
  const size_t pieces = scratch.pieces();
  parallel_for(parallel, pieces, [&](size_t i) {
    const Range panels = piece(w.count(), pieces, i, 2);
    run.multiply(w, panels.begin, panels.end, prepared, {nullptr, 0}, z + panels.begin * kLanes, z_stride);
  });
}

}  // namespace prosparse
