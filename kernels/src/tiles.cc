// Several tokens in a float format: rows of up_proj and down_proj go through the caches once for all of them.
#include "block.h"

namespace prosparse {
namespace {

constexpr size_t kUpColumns = 1024;               // of a tile at a time: four tokens' stay in the L1 cache, the tile's in L2
constexpr size_t kLeastColumns = 64;  // of a thread's part of down_proj
constexpr size_t kDownColumns = 2048;  // of a tile and of the next, in the L2 cache
constexpr size_t kResultBytes = size_t{128} << 10;  // of results that stay in the L2 cache while all tiles are added
// up_proj computes a neuron for all tokens if it is active for one in kCommon: where tokens share its loads, they take
// a third of the time. Up to kMemoryBound tokens the memory is what all wait for.
// Measured by benchmarks/crossovers.py, which builds others.
#ifndef PROSPARSE_COMMON
#define PROSPARSE_COMMON 4
#endif
#ifndef PROSPARSE_MEMORY_BOUND
#define PROSPARSE_MEMORY_BOUND 4
#endif
constexpr size_t kCommon = PROSPARSE_COMMON;
constexpr size_t kMemoryBound = PROSPARSE_MEMORY_BOUND;

size_t tile_end(const Ffn& ffn, size_t tile) { return std::min(ffn.d_ff, (tile + 1) * kTile); }

// Which neurons of a tile any token needs.
void count(const Block& block, size_t tile) {
  const Tiles& tiles = *block.tiles;
  const size_t first = tile * kTile, last = tile_end(block.ffn, tile), tokens = block.x.count;
  std::fill(tiles.seen + first, tiles.seen + last, uint8_t{0});
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t *starts = tiles.starts + t * (tiles.count + 1) + tile, *active = block.active + t * block.list_stride;
    for (int32_t i = starts[0]; i < starts[1]; ++i) ++tiles.seen[active[i]];
  }
  int32_t used = 0, common = 0;
  for (size_t k = first; k < last; ++k) {
    if (tiles.seen[k] == 0) continue;
    tiles.used[first + static_cast<size_t>(used++)] = static_cast<int32_t>(k);
    if (tokens > kMemoryBound && tiles.seen[k] * kCommon < tokens) continue;
    tiles.common[first + static_cast<size_t>(common++)] = static_cast<int32_t>(k);
  }
  tiles.used_counts[tile] = used;
  tiles.common_counts[tile] = common;
}

void find_starts(const Block& block, size_t token) {
  const Tiles& tiles = *block.tiles;
  const int32_t* active = block.active + token * block.list_stride;
  int32_t* starts = tiles.starts + token * (tiles.count + 1);
  const size_t count = block.scratch.counts[token];
  size_t i = 0;
  for (size_t tile = 0; tile <= tiles.count; ++tile) {
    while (i < count && static_cast<size_t>(active[i]) < tile * kTile) ++i;
    starts[tile] = static_cast<int32_t>(i);
  }
}

// The next tile of [tile, last) whose list is not empty, from its first column on.
Ahead next_tile(const int32_t* rows, const int32_t* counts, size_t tile, size_t last) {
  while (tile < last && counts[tile] == 0) ++tile;
  if (tile >= last) return {nullptr, 0, 0};
  return {rows + tile * kTile, static_cast<size_t>(counts[tile]), 0};
}

// h of one tile for all tokens.
void up(const Block& block, size_t tile, size_t last_tile, size_t index) {
  const Tiles& tiles = *block.tiles;
  const Ffn& ffn = block.ffn;
  const FormatKernels& kernels = block.fast();
  const size_t first = tile * kTile, tokens = block.x.count, common = static_cast<size_t>(tiles.common_counts[tile]);
  if (tiles.used_counts[tile] == 0) return;
  float* const v = tiles.v + index * kTile * tiles.v_stride;
  const int32_t* const rows = tiles.common + first;
  uint8_t place[kTile];  // in v; kTile: a neuron that only some tokens compute
  std::fill_n(place, kTile, uint8_t{kTile});
  for (size_t k = 0; k < common; ++k) {
    place[static_cast<size_t>(rows[k]) - first] = static_cast<uint8_t>(k);
    std::fill_n(v + k * tiles.v_stride, tiles.v_stride, ffn.up.bias[rows[k]]);
  }
  int32_t* const rare = tiles.rare + index * kBlock * kTile;
  float* const rare_v = tiles.rare_v + index * kBlock * kTile;
  size_t rare_counts[kBlock];
  const bool all_common = tiles.common_counts[tile] == tiles.used_counts[tile];
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t *starts = tiles.starts + t * (tiles.count + 1) + tile, *active = block.active + t * block.list_stride;
    size_t n = 0;
    rare_counts[t] = 0;
    if (all_common) continue;
    for (int32_t i = starts[0]; i < starts[1]; ++i) {
      rare[t * kTile + n] = active[i];
      n += place[static_cast<size_t>(active[i]) - first] == kTile;
    }
    rare_counts[t] = n;
  }
  for (size_t col = 0; col < ffn.d_model; col += kUpColumns) {
    const size_t cols = std::min(kUpColumns, ffn.d_model - col), end = col + cols;
    Ahead ahead = end < ffn.d_model ? Ahead{rows, common, end} : next_tile(tiles.common, tiles.common_counts, tile + 1, last_tile);
    if (!block.prefetch) ahead.count = 0;
    if (common != 0) kernels.tile(ffn.up, tiles.x + col * tokens, kUpColumns, tokens, rows, common, col, cols, ahead, v, tiles.v_stride);
    for (size_t t = 0; t < tokens; ++t) {
      if (rare_counts[t] == 0) continue;
      kernels.dot(ffn.up, block.x, t, rare + t * kTile, rare_counts[t], col, cols, block.prefetch, rare_v + t * kTile);
    }
  }
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t *starts = tiles.starts + t * (tiles.count + 1) + tile, *active = block.active + t * block.list_stride;
    const float *a = block.a + t * block.list_stride, *next = rare_v + t * kTile;
    float* h = block.h + t * block.list_stride;
    for (int32_t i = starts[0]; i < starts[1]; ++i) {
      const size_t at = place[static_cast<size_t>(active[i]) - first];
      float value = at == kTile ? *next++ : v[at * tiles.v_stride + t];
      if (ffn.activation == Activation::kDrelu && value <= 0.0f) value = 0.0f;
      h[i] = value * a[i];
    }
  }
}

void down(const Block& block, Range columns, size_t index) {
  const Tiles& tiles = *block.tiles;
  const Ffn& ffn = block.ffn;
  const size_t tokens = block.x.count;
  const size_t width = std::min(kDownColumns, round_up(kResultBytes / sizeof(float) / tokens, kMostTileColumns));
  block.start(columns);
  Part parts[kBlock];
  for (size_t col = columns.begin; col < columns.end; col += width) {
    const size_t cols = std::min(width, columns.end - col);
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      if (tiles.used_counts[tile] == 0) continue;
      for (size_t t = 0; t < tokens; ++t) {
        const int32_t* starts = tiles.starts + t * (tiles.count + 1) + tile;
        const size_t at = t * block.list_stride + static_cast<size_t>(starts[0]);
        parts[t] = {block.active + at, (ffn.gated ? block.h : block.a) + at, static_cast<size_t>(starts[1] - starts[0])};
      }
      Ahead ahead = next_tile(tiles.used, tiles.used_counts, tile + 1, tiles.count);
      if (!block.prefetch) ahead.count = 0;
      block.fast().add_lists(ffn.down, tile * kTile, tiles.used + tile * kTile, static_cast<size_t>(tiles.used_counts[tile]), col, cols, ahead,
                             parts, tokens, block.y + col, block.y_stride, tiles.copies + index * kTile * kMostTileColumns);
    }
  }
}

}  // namespace

Tiles::Tiles(const Ffn& ffn, size_t tokens, Scratch& scratch)
    : count((ffn.d_ff + kTile - 1) / kTile), v_stride(round_up(tokens, kTokenTile) + kLanes) {
  const size_t neurons = count * kTile, others = kPieces * kBlock * kTile;
  int32_t* integers = scratch.tile_integers.get<int32_t>(tokens * (count + 1) + 2 * (neurons + count) + others + (neurons + 3) / 4);
  const auto take = [&](size_t n) { return (integers += n) - n; };
  starts = take(tokens * (count + 1));
  used = take(neurons);
  used_counts = take(count);
  common = take(neurons);
  common_counts = take(count);
  rare = take(others);
  seen = reinterpret_cast<uint8_t*>(integers);
  const size_t columns = round_up(ffn.d_model, kUpColumns);
  x = scratch.tile_floats.get<float>(tokens * columns + kPieces * kTile * v_stride + others + kPieces * kTile * kMostTileColumns);
  v = x + tokens * columns;
  rare_v = v + kPieces * kTile * v_stride;
  copies = rare_v + others;
}

void run_tiles(Block& block) {
  const Ffn& ffn = block.ffn;
  const Tiles& tiles = *block.tiles;
  const auto tile_piece = [&](size_t i) { return piece(tiles.count, kPieces, i, 1); };
  parallel_for(block.parallel, block.x.count, [&](size_t t) {
    find_starts(block, t);
    for (size_t col = 0; col < ffn.d_model && ffn.gated; col += kUpColumns) {
      const float* from = block.x.x + t * block.x.stride + col;
      std::copy(from, from + std::min(kUpColumns, block.x.stride - col), tiles.x + col * block.x.count + t * kUpColumns);
    }
  });
  parallel_for(block.parallel, kPieces, [&](size_t i) {
    for (size_t tile = tile_piece(i).begin; tile < tile_piece(i).end; ++tile) count(block, tile);
    for (size_t tile = tile_piece(i).begin; tile < tile_piece(i).end && ffn.gated; ++tile) up(block, tile, tile_piece(i).end, i);
  });
  // One part of rows for each thread: memory likes long ones. Two where one thread was seen: the other may have slept.
  const size_t pieces = std::clamp<size_t>(ffn.d_model / kLeastColumns, 1, std::clamp<size_t>(block.scratch.threads, 2, kPieces));
  parallel_for(block.parallel, pieces, [&](size_t i) {
    const Range columns = piece(ffn.d_model, pieces, i, kLeastColumns);
    if (columns.begin != columns.end) down(block, columns, i);
  });
}

}  // namespace prosparse
