#include "tiles.h"

#include <algorithm>

namespace prosparse {
namespace {

// up_proj computes a neuron for all tokens if it is active for one in kCommon: where tokens share its loads, they take
// a third of the time. Up to kMemoryBound tokens it always does, since memory bandwidth is the limit.
// Measured by benchmarks/tuning.py, which builds others.
#ifndef PROSPARSE_COMMON
#define PROSPARSE_COMMON 4
#endif
#ifndef PROSPARSE_MEMORY_BOUND
#define PROSPARSE_MEMORY_BOUND 4
#endif
constexpr size_t kCommon = PROSPARSE_COMMON;
constexpr size_t kMemoryBound = PROSPARSE_MEMORY_BOUND;

bool is_common(const TokenBatch& batch, size_t neuron) {
  if (batch.transposed != nullptr) return batch.ffn.up.out_of_range[neuron] == 0;
  const size_t tokens = batch.x.count;
  return tokens <= kMemoryBound || batch.tiles->active_tokens[neuron] * kCommon >= tokens;
}

}  // namespace

Tiles::Tiles(const Ffn& ffn, size_t tokens, size_t pieces, Scratch& scratch)
    : count((ffn.d_ff + kTileRows - 1) / kTileRows), v_stride(round_up(tokens, kTokenTile) + kLanes) {
  const size_t neurons = count * kTileRows, others = pieces * kTileGroup * kBatchTokens * kTileRows;
  int32_t* integers = scratch.tile_integers.get<int32_t>(tokens * (count + 1) + ffn.d_ff * tokens +
                                                         2 * (neurons + count) + others + (neurons + 3) / 4);
  const auto take = [&](size_t n) { return (integers += n) - n; };
  starts = take(tokens * (count + 1));
  active = take(ffn.d_ff * tokens);
  used = take(neurons);
  used_counts = take(count);
  common = take(neurons);
  common_counts = take(count);
  rare = take(others);
  active_tokens = reinterpret_cast<uint8_t*>(integers);
  const size_t columns = round_up(ffn.d_model, kUpColumns);
  x = scratch.tile_floats.get<float>(tokens * columns + pieces * kTileGroup * kTileRows * v_stride + others +
                                     pieces * kTileRows * kMaxTileColumns);
  v = x + tokens * columns;
  rare_v = v + pieces * kTileGroup * kTileRows * v_stride;
  copies = rare_v + others;
}

ActiveList Tiles::list(const TokenBatch& batch, size_t token, size_t tile) const {
  const int32_t* at = starts + token * (count + 1) + tile;
  const size_t from = token * batch.list_stride + static_cast<size_t>(at[0]);
  return {batch.active + from, batch.a + from, static_cast<size_t>(at[1] - at[0])};
}

void find_starts(const TokenBatch& batch, size_t token) {
  const Tiles& tiles = *batch.tiles;
  const int32_t* active = batch.active + token * batch.list_stride;
  int32_t* starts = tiles.starts + token * (tiles.count + 1);
  const size_t count = batch.scratch.counts[token];
  size_t i = 0;
  for (size_t tile = 0; tile <= tiles.count; ++tile) {
    while (i < count && static_cast<size_t>(active[i]) < tile * kTileRows) ++i;
    starts[tile] = static_cast<int32_t>(i);
  }
}

void count_active(const TokenBatch& batch, size_t tile) {
  const Tiles& tiles = *batch.tiles;
  const size_t first = tile * kTileRows, last = std::min(batch.ffn.d_ff, first + kTileRows);
  std::fill(tiles.active_tokens + first, tiles.active_tokens + last, uint8_t{0});
  for (size_t t = 0; t < batch.x.count; ++t) {
    const ActiveList list = tiles.list(batch, t, tile);
    for (size_t i = 0; i < list.count; ++i) ++tiles.active_tokens[list.active[i]];
  }
  int32_t used = 0, common = 0;
  for (size_t k = first; k < last; ++k) {
    if (tiles.active_tokens[k] == 0) continue;
    tiles.used[first + static_cast<size_t>(used++)] = static_cast<int32_t>(k);
    if (is_common(batch, k)) tiles.common[first + static_cast<size_t>(common++)] = static_cast<int32_t>(k);
  }
  tiles.used_counts[tile] = used;
  tiles.common_counts[tile] = common;
}

void gather_lists(const TokenBatch& batch, size_t tile) {
  const Tiles& tiles = *batch.tiles;
  size_t out = tile * kTileRows * batch.x.count;
  for (size_t t = 0; t < batch.x.count; ++t) {
    const ActiveList list = tiles.list(batch, t, tile);
    std::copy_n(list.active, list.count, tiles.active + out);
    std::copy_n(list.a, list.count, batch.h + out);
    out += list.count;
  }
}

PrefetchRows next_rows(const int32_t* rows, const int32_t* counts, size_t tile, size_t last, size_t col) {
  while (tile < last && counts[tile] == 0) ++tile;
  if (tile >= last) return {nullptr, 0, 0};
  return {rows + tile * kTileRows, static_cast<size_t>(counts[tile]), col};
}

}  // namespace prosparse
