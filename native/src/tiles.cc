// Several tokens in a float format: rows of up_proj and down_proj go through the caches once for all of them.
#include "block.h"

namespace prosparse {
namespace {

constexpr size_t kUpColumns = 1024;  // of a tile at a time: four tokens' stay in the L1 cache, the tile's in L2
// Tiles that share these columns of x where all of x does not stay in the L2 cache. Otherwise rows are read on to their
// end.
constexpr size_t kTogether = 4;
constexpr size_t kCachedX = size_t{1} << 20;        // bytes
constexpr size_t kLeastColumns = 64;                // of a thread's part of down_proj
constexpr size_t kDownColumns = 2048;               // of a tile and of the next, in the L2 cache
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
    const List list = tiles.list(block, t, tile);
    for (size_t i = 0; i < list.count; ++i) ++tiles.seen[list.active[i]];
  }
  int32_t used = 0, common = 0;
  for (size_t k = first; k < last; ++k) {
    if (tiles.seen[k] == 0) continue;
    tiles.used[first + static_cast<size_t>(used++)] = static_cast<int32_t>(k);
    if (block.turned != nullptr ? block.ffn.up.wild[k] != 0 : tokens > kMemoryBound && tiles.seen[k] * kCommon < tokens)
      continue;
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

// The next tile of [tile, last) whose list is not empty, from column `col` on.
Ahead next_tile(const int32_t* rows, const int32_t* counts, size_t tile, size_t last, size_t col) {
  while (tile < last && counts[tile] == 0) ++tile;
  if (tile >= last) return {nullptr, 0, 0};
  return {rows + tile * kTile, static_cast<size_t>(counts[tile]), col};
}

// One of the tiles that a thread computes together.
struct UpTile {
  size_t index;
  float* v;       // [kTile][v_stride], of common neurons
  int32_t* rare;  // [tokens][kTile], the others of each token
  float* rare_v;  // beside them
  size_t rare_counts[kBlock];
  uint8_t place[kTile];  // in v; kTile: a neuron that only some tokens compute
};

// Whether a token's x is not among the parts that tiles read.
bool is_alone(const Block& block, size_t token) {
  return block.turned != nullptr && block.scratch.is_odd[token].load(std::memory_order_relaxed);
}

void start_up(const Block& block, UpTile& up) {
  const Tiles& tiles = *block.tiles;
  const size_t first = up.index * kTile, common = static_cast<size_t>(tiles.common_counts[up.index]);
  const int32_t* const rows = tiles.common + first;
  std::fill_n(up.place, kTile, uint8_t{kTile});
  for (size_t k = 0; k < common; ++k) {
    up.place[static_cast<size_t>(rows[k]) - first] = static_cast<uint8_t>(k);
    std::fill_n(up.v + k * tiles.v_stride, tiles.v_stride, block.ffn.up.bias[rows[k]]);
  }
  std::fill_n(up.rare_counts, block.x.count, size_t{0});
  const bool all_common = tiles.common_counts[up.index] == tiles.used_counts[up.index];
  for (size_t t = 0; t < block.x.count; ++t) {
    const bool alone = is_alone(block, t);
    if (all_common && !alone) continue;
    const List list = tiles.list(block, t, up.index);
    size_t n = 0;
    for (size_t i = 0; i < list.count; ++i) {
      up.rare[t * kTile + n] = list.active[i];
      n += alone || up.place[static_cast<size_t>(list.active[i]) - first] == kTile;
    }
    up.rare_counts[t] = n;
  }
}

void finish_up(const Block& block, const UpTile& up) {
  const Tiles& tiles = *block.tiles;
  const size_t first = up.index * kTile;
  size_t out = first * block.x.count;
  for (size_t t = 0; t < block.x.count; ++t) {
    const List list = tiles.list(block, t, up.index);
    const float* next = up.rare_v + t * kTile;
    const bool alone = is_alone(block, t);
    for (size_t i = 0; i < list.count; ++i, ++out) {
      const size_t at = up.place[static_cast<size_t>(list.active[i]) - first];
      float value = alone || at == kTile ? *next++ : up.v[at * tiles.v_stride + t];
      if (block.ffn.activation == Activation::kDrelu && value <= 0.0f) value = 0.0f;
      tiles.active[out] = list.active[i];
      block.h[out] = value * list.a[i];
    }
  }
}

// h of some tiles for all tokens: kUpColumns of their x stay in the L2 cache.
void up(const Block& block, Range range, size_t last_tile, size_t index) {
  const Tiles& tiles = *block.tiles;
  const Ffn& ffn = block.ffn;
  const FormatKernels& kernels = block.kernels.of[static_cast<size_t>(ffn.up.format)];
  const size_t tokens = block.x.count;
  UpTile group[kTogether];
  for (size_t tile = range.begin; tile < range.end; ++tile) {
    UpTile& one = group[tile - range.begin];
    const size_t at = index * kTogether + tile - range.begin;
    one.index = tile;
    one.v = tiles.v + at * kTile * tiles.v_stride;
    one.rare = tiles.rare + at * kBlock * kTile;
    one.rare_v = tiles.rare_v + at * kBlock * kTile;
    start_up(block, one);
  }
  for (size_t col = 0; col < ffn.d_model; col += kUpColumns) {
    const size_t cols = std::min(kUpColumns, ffn.d_model - col), end = col + cols;
    for (size_t tile = range.begin; tile < range.end; ++tile) {
      const UpTile& one = group[tile - range.begin];
      const size_t common = static_cast<size_t>(tiles.common_counts[tile]);
      Ahead ahead = next_tile(tiles.common, tiles.common_counts, tile + 1, range.end, col);
      if (ahead.count == 0 && end < ffn.d_model)
        ahead = next_tile(tiles.common, tiles.common_counts, range.begin, range.end, end);
      if (ahead.count == 0) ahead = next_tile(tiles.common, tiles.common_counts, range.end, last_tile, 0);
      if (!block.prefetch) ahead.count = 0;
      if (common != 0 && block.turned != nullptr) {
        kernels.tile_split(ffn.up, block.turned, tokens, tiles.common + tile * kTile, common, col, cols, ahead, one.v,
                           tiles.v_stride);
      } else if (common != 0) {
        kernels.tile(ffn.up, tiles.x + col * tokens, kUpColumns, tokens, tiles.common + tile * kTile, common, col, cols,
                     ahead, one.v, tiles.v_stride);
      }
      for (size_t t = 0; t < tokens; ++t) {
        if (one.rare_counts[t] == 0) continue;
        kernels.dot(ffn.up, block.x, t, one.rare + t * kTile, one.rare_counts[t], col, cols, block.prefetch,
                    one.rare_v + t * kTile);
      }
    }
  }
  for (size_t i = 0; i < range.end - range.begin; ++i) finish_up(block, group[i]);
}

// The lists of a tile side by side where there is no up_proj.
void gather(const Block& block, size_t tile) {
  const Tiles& tiles = *block.tiles;
  size_t out = tile * kTile * block.x.count;
  for (size_t t = 0; t < block.x.count; ++t) {
    const List list = tiles.list(block, t, tile);
    std::copy_n(list.active, list.count, tiles.active + out);
    std::copy_n(list.a, list.count, block.h + out);
    out += list.count;
  }
}

void down(const Block& block, Range columns, size_t index) {
  const Tiles& tiles = *block.tiles;
  const Ffn& ffn = block.ffn;
  const FormatKernels& kernels = block.kernels.of[static_cast<size_t>(ffn.down.format)];
  const size_t tokens = block.x.count;
  const size_t width = std::min(kDownColumns, round_up(kResultBytes / sizeof(float) / tokens, kMostTileColumns));
  block.start(columns);
  Part parts[kBlock];
  for (size_t col = columns.begin; col < columns.end; col += width) {
    const size_t cols = std::min(width, columns.end - col);
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      if (tiles.used_counts[tile] == 0) continue;
      size_t at = tile * kTile * tokens;
      for (size_t t = 0; t < tokens; ++t) {
        parts[t] = {tiles.active + at, block.h + at, tiles.list(block, t, tile).count};
        at += parts[t].count;
      }
      Ahead ahead = next_tile(tiles.used, tiles.used_counts, tile + 1, tiles.count, 0);
      if (!block.prefetch) ahead.count = 0;
      kernels.add_lists(ffn.down, tile * kTile, tiles.used + tile * kTile, static_cast<size_t>(tiles.used_counts[tile]),
                        col, cols, ahead, parts, tokens, block.y + col, block.y_stride,
                        tiles.copies + index * kTile * kMostTileColumns);
    }
  }
}

}  // namespace

List Tiles::list(const Block& block, size_t token, size_t tile) const {
  const int32_t* at = starts + token * (count + 1) + tile;
  const size_t from = token * block.list_stride + static_cast<size_t>(at[0]);
  return {block.active + from, block.a + from, static_cast<size_t>(at[1] - at[0])};
}

Tiles::Tiles(const Ffn& ffn, size_t tokens, Scratch& scratch)
    : count((ffn.d_ff + kTile - 1) / kTile), v_stride(round_up(tokens, kTokenTile) + kLanes) {
  const size_t neurons = count * kTile, others = kPieces * kTogether * kBlock * kTile;
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
  seen = reinterpret_cast<uint8_t*>(integers);
  const size_t columns = round_up(ffn.d_model, kUpColumns);
  x = scratch.tile_floats.get<float>(tokens * columns + kPieces * kTogether * kTile * v_stride + others +
                                     kPieces * kTile * kMostTileColumns);
  v = x + tokens * columns;
  rare_v = v + kPieces * kTogether * kTile * v_stride;
  copies = rare_v + others;
}

void run_tiles(Block& block) {
  const Ffn& ffn = block.ffn;
  const Tiles& tiles = *block.tiles;
  const auto tile_piece = [&](size_t i) { return piece(tiles.count, kPieces, i, 1); };
  const bool split = block.x.split != nullptr && ffn.gated;
  if (split) {
    const size_t bytes = split_bytes(kLanes, ffn.d_model), blocks = (block.x.count + kLanes - 1) / kLanes;
    uint8_t* turned = block.scratch.turned.get<uint8_t>(bytes * blocks);
    parallel_for(block.parallel, blocks, [&](size_t b) {
      for (size_t at = b * bytes; at < (b + 1) * bytes; at += kSplitTile)
        block.kernels.turn(block.x.split + at, turned + at);
    });
    block.turned = turned;
  }
  parallel_for(block.parallel, block.x.count, [&](size_t t) {
    find_starts(block, t);
    if (split) return;
    for (size_t col = 0; col < ffn.d_model && ffn.gated; col += kUpColumns) {
      const float* from = block.x.x + t * block.x.stride + col;
      std::copy(from, from + std::min(kUpColumns, block.x.stride - col),
                tiles.x + col * block.x.count + t * kUpColumns);
    }
  });
  parallel_for(block.parallel, kPieces, [&](size_t i) {
    for (size_t tile = tile_piece(i).begin; tile < tile_piece(i).end; ++tile) count(block, tile);
    const Range range = tile_piece(i);
    for (size_t tile = range.begin; tile < range.end && !ffn.gated; ++tile) gather(block, tile);
    const size_t together = block.x.count * ffn.d_model * sizeof(float) > kCachedX ? kTogether : 1;
    for (size_t tile = range.begin; tile < range.end && ffn.gated; tile += together) {
      up(block, {tile, std::min(tile + together, range.end)}, range.end, i);
    }
  });
  // One part of rows for each thread: memory likes long ones. Two where one thread was seen: the other may have slept.
  const size_t pieces =
      std::clamp<size_t>(ffn.d_model / kLeastColumns, 1, std::clamp<size_t>(block.scratch.threads, 2, kPieces));
  parallel_for(block.parallel, pieces, [&](size_t i) {
    const Range columns = piece(ffn.d_model, pieces, i, kLeastColumns);
    if (columns.begin != columns.end) down(block, columns, i);
  });
}

}  // namespace prosparse
