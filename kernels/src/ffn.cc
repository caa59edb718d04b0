#include "ffn.h"

#include <algorithm>

namespace prosparse {
namespace {

// How work is cut depends on shapes alone. 16 pieces keep a few threads busy to the end; a piece of
// down_proj is at least 1 KiB of a row, below which the memory system wastes what it fetches.
constexpr size_t kPieces = 16;
constexpr size_t kDownColumns = 256;
constexpr size_t kUpRows = 32;

struct Range {
  size_t begin, end;
};

Range piece(size_t total, size_t pieces, size_t index, size_t multiple) {
  const size_t size = ((total + pieces - 1) / pieces + multiple - 1) / multiple * multiple;
  return {std::min(total, index * size), std::min(total, (index + 1) * size)};
}

struct Block {
  const FfnKernels& kernels;
  const Ffn& ffn;
  const float* x;
  size_t tokens;
  float* y;
  Scratch& scratch;
  size_t up_pieces, down_pieces;

  size_t d_ff() const { return ffn.d_ff; }

  // z for a range of neurons, all tokens.
  void gate(size_t index) {
    const Range rows = piece(d_ff(), kPieces, index, 16);
    const float* w = ffn.w_gate != nullptr ? ffn.w_gate : ffn.w_up;
    const float* b = ffn.w_gate != nullptr ? ffn.b_gate : ffn.b_up;
    kernels.dot_rows(w + rows.begin * ffn.d_model, b + rows.begin, rows.end - rows.begin, ffn.d_model, x,
                     tokens, scratch.z.get() + rows.begin, d_ff());
  }

  // The list of active neurons of one token, and their activations packed in place.
  void compact(size_t token) {
    float* z = scratch.z.get() + token * d_ff();
    int32_t* active = scratch.active.get() + token * d_ff();
    size_t count = 0;
    for (size_t k = 0; k < d_ff(); ++k) {  // no branch: at 90 % sparsity a guess would miss too often
      const float value = z[k];
      active[count] = static_cast<int32_t>(k);
      z[count] = value;  // count <= k: nothing unread is overwritten
      count += !(value <= ffn.threshold);
    }
    if (ffn.activation == Activation::kRelu2) {
      for (size_t k = 0; k < count; ++k) z[k] *= z[k];
    }
    scratch.counts[token] = count;
  }

  // h = a * v for a piece of one token's list: by count, so that clusters of active neurons do not matter.
  void up(size_t index) {
    const size_t token = index / up_pieces;
    const Range list = piece(scratch.counts[token], up_pieces, index % up_pieces, 4);
    const size_t first = token * d_ff() + list.begin, count = list.end - list.begin;
    float* h = scratch.h.get() + first;
    const float* a = scratch.z.get() + first;
    kernels.dot_active(ffn.w_up, ffn.b_up, ffn.d_model, x + token * ffn.d_model, scratch.active.get() + first,
                       count, h);
    if (ffn.activation == Activation::kDrelu) {
      for (size_t k = 0; k < count; ++k) h[k] = h[k] <= 0.0f ? 0.0f : h[k];
    }
    for (size_t k = 0; k < count; ++k) h[k] *= a[k];
  }

  // Some columns of one token's result: a split by neurons would need a sum whose order depends on threads.
  void down(size_t index) {
    const size_t token = index / down_pieces;
    const Range columns = piece(ffn.d_model, down_pieces, index % down_pieces, 16);
    const float* h = (ffn.w_gate != nullptr ? scratch.h : scratch.z).get() + token * d_ff();
    kernels.axpy_active(ffn.w_down + columns.begin, ffn.d_model, ffn.b_down + columns.begin, h,
                        scratch.active.get() + token * d_ff(), scratch.counts[token],
                        columns.end - columns.begin, y + token * ffn.d_model + columns.begin);
  }
};

using Step = void (Block::*)(size_t);

template <Step step>
void call(void* block, size_t index) {
  (static_cast<Block*>(block)->*step)(index);
}

}  // namespace

std::unique_ptr<Scratch> ScratchPool::take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<Scratch> scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  auto scratch = std::make_unique<Scratch>();
  const size_t size = kBlock * d_ff_ + 1;  // + 1: compaction writes one entry past the last active one
  scratch->z.reset(new float[size]);       // not zeroed: pages that no call needs are never touched
  scratch->h.reset(new float[size]);
  scratch->active.reset(new int32_t[size]);
  scratch->counts.resize(kBlock);
  return scratch;
}

void ScratchPool::give_back(std::unique_ptr<Scratch> scratch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(scratch));
}

void run_ffn(const FfnKernels& kernels, const Ffn& ffn, const float* x, size_t tokens, float* y,
             const Parallel& parallel, Scratch& scratch) {
  const size_t up_pieces = std::clamp<size_t>(ffn.d_ff / kUpRows, 1, kPieces);
  const size_t down_pieces = std::clamp<size_t>(ffn.d_model / kDownColumns, 1, kPieces);
  for (size_t first = 0; first < tokens; first += kBlock) {
    const size_t count = std::min(kBlock, tokens - first);
    Block block{kernels,  ffn,     x + first * ffn.d_model, count, y + first * ffn.d_model, scratch,
                up_pieces, down_pieces};
    parallel.run(parallel.context, kPieces, call<&Block::gate>, &block);
    if (count == 1) {
      block.compact(0);
    } else {
      parallel.run(parallel.context, count, call<&Block::compact>, &block);
    }
    if (ffn.w_gate != nullptr) parallel.run(parallel.context, count * up_pieces, call<&Block::up>, &block);
    parallel.run(parallel.context, count * down_pieces, call<&Block::down>, &block);
  }
}

}  // namespace prosparse
