// Several tokens in a float format: their active neurons by tile of kTileRows neurons.
#ifndef PROSPARSE_TILES_H_
#define PROSPARSE_TILES_H_

#include "token_batch.h"

namespace prosparse {

constexpr size_t kUpColumns = 1024;  // of a tile at a time: four tokens' stay in the L1 cache, the tile's in L2
constexpr size_t kTileGroup = 4;     // most tiles that a thread computes together

struct ActiveList {  // of one token in a tile
  const int32_t* active;
  const float* a;
  size_t count;
};

struct Tiles {
  size_t count = 0;                  // tiles
  uint8_t* active_tokens = nullptr;  // [d_ff]: for how many tokens a neuron is active
  int32_t* starts = nullptr;         // [tokens][count + 1]: where in a token's list a tile begins
  // All tokens' lists by tile, then by token, in the order that down_proj reads them; TokenBatch::h likewise.
  int32_t* active = nullptr;
  int32_t *used = nullptr, *used_counts = nullptr;      // [d_ff], [count]: by tile, neurons active for any token
  int32_t *common = nullptr, *common_counts = nullptr;  // those of them that up_proj computes for all tokens
  float* x = nullptr;                                   // by kUpColumns columns, then by token
  size_t v_stride = 0;
  float* v = nullptr;       // [pieces][kTileGroup][kTileRows][v_stride]: up_proj of common neurons
  int32_t* rare = nullptr;  // [pieces][kTileGroup][kBatchTokens][kTileRows]: each token's other neurons
  float* rare_v = nullptr;  // their up_proj
  float* copies = nullptr;  // [pieces][kTileRows * kMaxTileColumns]

  Tiles() = default;
  Tiles(const Ffn& ffn, size_t tokens, size_t pieces, Scratch& scratch);  // may throw std::bad_alloc

  // Of one token, once find_starts has run.
  ActiveList list(const TokenBatch& batch, size_t token, size_t tile) const;
};

// Where the tiles begin in one token's list.
void find_starts(const TokenBatch& batch, size_t token);
// Which neurons of a tile are used, and which are common.
void count_active(const TokenBatch& batch, size_t tile);
// Without a gate: the lists of a tile side by side.
void gather_lists(const TokenBatch& batch, size_t tile);
// The next tile of [tile, last) whose list is not empty, from column `col` on.
PrefetchRows next_rows(const int32_t* rows, const int32_t* counts, size_t tile, size_t last, size_t col);

}  // namespace prosparse

#endif  // PROSPARSE_TILES_H_
