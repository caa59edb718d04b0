// gate_proj and up_proj by DotKernels.
#ifndef PROSPARSE_DOT_NEURONS_H_
#define PROSPARSE_DOT_NEURONS_H_

#include "dot_ffn.h"

namespace prosparse {

constexpr size_t kDotBlock = 160;  // neurons at a time, so that their activations stay in the L2 cache

// down_proj's input of a piece of neurons, which follows tile after tile.
struct DotPiece {
  int32_t* rows;
  DotEntry* entries;
  uint32_t* ends;
  DotTile* tiles;
  size_t count;
};

// Kernels::compact writes beyond its result.
constexpr size_t kDotStride = kDotBlock + kLanes;
constexpr size_t dot_work_floats(size_t tokens) { return tokens * (kDotBlock + 4 * kDotStride); }

// Computes the neurons of some panels. Tokens in `others` have none; those whose h is out of range are marked in
// scratch.needs_fallback. most_are_used: whether any tokens use most neurons of the block before; then of the last
// block.
void run_dot_neurons(const Kernels& kernels, DotLevel level, const Ffn& ffn, const DotTokens& x, Range panels,
                     const LeftOut& others, float* work, bool& most_are_used, DotPiece& out, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_DOT_NEURONS_H_
