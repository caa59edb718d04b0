#include "tiled_ffn.h"

#include <algorithm>

namespace prosparse {
namespace {

constexpr size_t kCachedX = size_t{1} << 20;        // bytes of x beyond which tiles share its columns in the L2 cache
constexpr size_t kLeastColumns = 64;                // of a thread's part of down_proj
constexpr size_t kDownColumns = 2048;               // of a tile and of the next, in the L2 cache
constexpr size_t kResultBytes = size_t{128} << 10;  // of results that stay in the L2 cache while all tiles are added

// One of the tiles that a thread computes together.
struct UpTile {
  size_t index;
  float* v;       // [kTileRows][v_stride], of common neurons
  int32_t* rare;  // [tokens][kTileRows], the others of each token
  float* rare_v;  // their up_proj
  size_t rare_counts[kBatchTokens];
  uint8_t place[kTileRows];  // in v; kTileRows: a neuron that only some tokens compute
};

// Whether a token's x is not among the bfloat16 parts.
bool is_left_out(const TokenBatch& batch, size_t token) {
  return batch.transposed != nullptr && batch.scratch.needs_fallback[token].load(std::memory_order_relaxed);
}

void start_up(const TokenBatch& batch, size_t tile, size_t place, UpTile& up) {
  const Tiles& tiles = *batch.tiles;
  up.index = tile;
  up.v = tiles.v + place * kTileRows * tiles.v_stride;
  up.rare = tiles.rare + place * kBatchTokens * kTileRows;
  up.rare_v = tiles.rare_v + place * kBatchTokens * kTileRows;
  const size_t first = tile * kTileRows, common = static_cast<size_t>(tiles.common_counts[tile]);
  const int32_t* const rows = tiles.common + first;
  std::fill_n(up.place, kTileRows, uint8_t{kTileRows});
  for (size_t k = 0; k < common; ++k) {
    up.place[static_cast<size_t>(rows[k]) - first] = static_cast<uint8_t>(k);
    std::fill_n(up.v + k * tiles.v_stride, tiles.v_stride, batch.ffn.up.bias[rows[k]]);
  }
  std::fill_n(up.rare_counts, batch.x.count, size_t{0});
  const bool all_common = tiles.common_counts[tile] == tiles.used_counts[tile];
  for (size_t t = 0; t < batch.x.count; ++t) {
    const bool left_out = is_left_out(batch, t);
    if (all_common && !left_out) continue;
    const ActiveList list = tiles.list(batch, t, tile);
    size_t n = 0;
    for (size_t i = 0; i < list.count; ++i) {
      up.rare[t * kTileRows + n] = list.active[i];
      n += left_out || up.place[static_cast<size_t>(list.active[i]) - first] == kTileRows;
    }
    up.rare_counts[t] = n;
  }
}

void finish_up(const TokenBatch& batch, const UpTile& up) {
  const Tiles& tiles = *batch.tiles;
  const size_t first = up.index * kTileRows;
  size_t out = first * batch.x.count;
  for (size_t t = 0; t < batch.x.count; ++t) {
    const ActiveList list = tiles.list(batch, t, up.index);
    const float* next = up.rare_v + t * kTileRows;
    const bool left_out = is_left_out(batch, t);
    for (size_t i = 0; i < list.count; ++i, ++out) {
      const size_t at = up.place[static_cast<size_t>(list.active[i]) - first];
      float value = left_out || at == kTileRows ? *next++ : up.v[at * tiles.v_stride + t];
      if (batch.ffn.activation == Activation::kDrelu && value <= 0.0f) value = 0.0f;
      tiles.active[out] = list.active[i];
      batch.h[out] = value * list.a[i];
    }
  }
}

// What to prefetch while tile `tile` of `group` works on columns that end at `end`: the group's next tile, else its
// first one's next columns, else the first tile of the next group.
PrefetchRows rows_after(const TokenBatch& batch, Range group, size_t tile, size_t last_tile, size_t col, size_t end) {
  const Tiles& tiles = *batch.tiles;
  if (batch.prefetches == 0) return {nullptr, 0, 0};
  PrefetchRows next = next_rows(tiles.common, tiles.common_counts, tile + 1, group.end, col);
  if (next.count == 0 && end < batch.ffn.d_model) {
    next = next_rows(tiles.common, tiles.common_counts, group.begin, group.end, end);
  }
  if (next.count == 0) next = next_rows(tiles.common, tiles.common_counts, group.end, last_tile, 0);
  return next;
}

// Adds columns [col, col + cols) of up_proj to a tile's v and rare_v.
void add_up_columns(const TokenBatch& batch, const UpTile& up, size_t col, size_t cols, const PrefetchRows& next) {
  const Tiles& tiles = *batch.tiles;
  const Rows& w = batch.ffn.up;
  const FormatKernels& kernels = batch.kernels.of[static_cast<size_t>(w.format)];
  const size_t tokens = batch.x.count, common = static_cast<size_t>(tiles.common_counts[up.index]);
  const int32_t* const rows = tiles.common + up.index * kTileRows;
  if (common != 0 && batch.transposed != nullptr) {
    kernels.gather_gemm_bf16x3(w, batch.transposed, tokens, rows, common, col, cols, next, up.v, tiles.v_stride);
  } else if (common != 0) {
    kernels.gather_gemm(w, tiles.x + col * tokens, kUpColumns, tokens, rows, common, col, cols, next, up.v,
                        tiles.v_stride);
  }
  for (size_t t = 0; t < tokens; ++t) {
    if (up.rare_counts[t] == 0) continue;
    kernels.gather_dot(w, batch.x, t, up.rare + t * kTileRows, up.rare_counts[t], col, cols, batch.prefetches,
                       up.rare_v + t * kTileRows);
  }
}

// h of a group of tiles for all tokens: kUpColumns of their x stay in the L2 cache.
void compute_up(const TokenBatch& batch, Range group, size_t last_tile, size_t piece_index) {
  UpTile up[kTileGroup];
  for (size_t tile = group.begin; tile < group.end; ++tile) {
    start_up(batch, tile, piece_index * kTileGroup + tile - group.begin, up[tile - group.begin]);
  }
  for (size_t col = 0; col < batch.ffn.d_model; col += kUpColumns) {
    const size_t cols = std::min(kUpColumns, batch.ffn.d_model - col);
    for (size_t tile = group.begin; tile < group.end; ++tile) {
      const PrefetchRows next = rows_after(batch, group, tile, last_tile, col, col + cols);
      add_up_columns(batch, up[tile - group.begin], col, cols, next);
    }
  }
  for (size_t i = 0; i < group.end - group.begin; ++i) finish_up(batch, up[i]);
}

// Columns that all tiles are added to before the next ones.
size_t down_width(size_t tokens) {
  return std::min(kDownColumns, round_up(kResultBytes / sizeof(float) / tokens, kMaxTileColumns));
}

// Some columns of y, for all tokens.
void compute_down(const TokenBatch& batch, Range columns, size_t piece_index) {
  const Tiles& tiles = *batch.tiles;
  const Ffn& ffn = batch.ffn;
  const FormatKernels& kernels = batch.kernels.of[static_cast<size_t>(ffn.down.format)];
  const size_t tokens = batch.x.count;
  const size_t width = down_width(tokens);
  batch.start_down(columns);
  ScatterList lists[kBatchTokens];
  for (size_t col = columns.begin; col < columns.end; col += width) {
    const size_t cols = std::min(width, columns.end - col);
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      if (tiles.used_counts[tile] == 0) continue;
      size_t at = tile * kTileRows * tokens;
      for (size_t t = 0; t < tokens; ++t) {
        lists[t] = {tiles.active + at, batch.h + at, tiles.list(batch, t, tile).count};
        at += lists[t].count;
      }
      PrefetchRows next = next_rows(tiles.used, tiles.used_counts, tile + 1, tiles.count, 0);
      if (batch.prefetches == 0) next.count = 0;
      kernels.scatter_gemm(ffn.down, tile * kTileRows, tiles.used + tile * kTileRows,
                           static_cast<size_t>(tiles.used_counts[tile]), col, cols, next, lists, tokens, batch.y + col,
                           batch.y_stride, tiles.copies + piece_index * kTileRows * kMaxTileColumns);
    }
  }
}

void transpose_bf16x3(TokenBatch& batch) {
  const size_t bytes = bf16x3_bytes(kLanes, batch.ffn.d_model), token_tiles = (batch.x.count + kLanes - 1) / kLanes;
  uint8_t* transposed = batch.scratch.transposed.get<uint8_t>(bytes * token_tiles);
  parallel_for(batch.parallel, token_tiles, [&](size_t i) {
    for (size_t at = i * bytes; at < (i + 1) * bytes; at += kAmxTileBytes) {
      batch.kernels.vnni_transpose(batch.x.bf16x3 + at, transposed + at);
    }
  });
  batch.transposed = transposed;
}

// Tiles::x of one token.
void copy_columns(const TokenBatch& batch, size_t token) {
  const Tiles& tiles = *batch.tiles;
  for (size_t col = 0; col < batch.ffn.d_model; col += kUpColumns) {
    const float* from = batch.x.x + token * batch.x.stride + col;
    std::copy(from, from + std::min(kUpColumns, batch.x.stride - col),
              tiles.x + col * batch.x.count + token * kUpColumns);
  }
}

}  // namespace

void run_tiled(TokenBatch& batch) {
  const Ffn& ffn = batch.ffn;
  const Tiles& tiles = *batch.tiles;
  if (batch.x.bf16x3 != nullptr && ffn.gated) transpose_bf16x3(batch);
  parallel_for(batch.parallel, batch.x.count, [&](size_t t) {
    find_starts(batch, t);
    if (ffn.gated && batch.transposed == nullptr) copy_columns(batch, t);
  });
  const size_t group = batch.x.count * ffn.d_model * sizeof(float) > kCachedX ? kTileGroup : 1;
  parallel_for(batch.parallel, batch.pieces, [&](size_t i) {
    const Range range = piece(tiles.count, batch.pieces, i, 1);
    for (size_t tile = range.begin; tile < range.end; ++tile) count_active(batch, tile);
    for (size_t tile = range.begin; tile < range.end && !ffn.gated; ++tile) gather_lists(batch, tile);
    for (size_t tile = range.begin; tile < range.end && ffn.gated; tile += group) {
      compute_up(batch, {tile, std::min(tile + group, range.end)}, range.end, i);
    }
  });
  // One part of rows per thread, since long reads are faster, or parts of the width that they are read in. Two if only
  // one thread was seen: the other may have been asleep.
  const size_t threads = std::clamp<size_t>(batch.scratch.threads, 2, batch.pieces);
  const size_t parts = std::clamp(ffn.d_model / down_width(batch.x.count), threads, batch.pieces);
  const size_t pieces = std::clamp<size_t>(ffn.d_model / kLeastColumns, 1, parts);
  parallel_for(batch.parallel, pieces, [&](size_t i) {
    const Range columns = piece(ffn.d_model, pieces, i, kLeastColumns);
    if (columns.begin != columns.end) compute_down(batch, columns, i);
  });
}

}  // namespace prosparse
