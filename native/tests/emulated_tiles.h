// AMX's tiles in software, to test the kernels that use them on processors with AVX-512 VNNI:
// cmake -DPROSPARSE_EMULATED_TILES=ON. Tiles must have 16 rows of 64 bytes. Unlike AMX, denormal numbers
// are kept (Intel, Architecture Instruction Set Extensions Programming Reference, TDPBF16PS).
#ifndef PROSPARSE_TESTS_EMULATED_TILES_H_
#define PROSPARSE_TESTS_EMULATED_TILES_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace prosparse::testing {

constexpr int kTiles = 8, kTileRows = 16;
constexpr size_t kTileRowBytes = 64;

struct Tiles {
  bool configured = false;
  alignas(kTileRowBytes) uint8_t data[kTiles][kTileRows][kTileRowBytes];
};
inline thread_local Tiles tiles;

// A processor raises #UD without a configuration.
inline uint8_t (&tile(int t)) [kTileRows][kTileRowBytes] {
  if (!tiles.configured) std::abort();
  return tiles.data[t];
}

inline void tile_loadconfig(const void* config) {
  const uint8_t* const bytes = static_cast<const uint8_t*>(config);
  for (int t = 0; t < kTiles; ++t) {
    if (bytes[0] != 1 || bytes[16 + 2 * t] != kTileRowBytes || bytes[48 + t] != kTileRows) std::abort();
  }
  tiles.configured = true;
  std::memset(tiles.data, 0, sizeof(tiles.data));
}
inline void tile_release() { tiles.configured = false; }
inline void tile_zero(int t) { std::memset(tile(t), 0, sizeof(tiles.data[t])); }
inline void tile_loadd(int t, const void* from, size_t stride) {
  for (size_t r = 0; r < kTileRows; ++r)
    std::memcpy(tile(t)[r], static_cast<const uint8_t*>(from) + r * stride, kTileRowBytes);
}
inline void tile_stored(int t, void* to, size_t stride) {
  for (size_t r = 0; r < kTileRows; ++r) std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile(t)[r], kTileRowBytes);
}

// sums[m][n] += a[m][k] * b[k][n], pairs of bfloat16 each: even and odd ones have sums of their own.
__attribute__((target("avx512f"))) inline void tile_dpbf16ps(int sums, int a, int b) {
  if (sums == a || sums == b || a == b) std::abort();  // #UD
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int m = 0; m < kTileRows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < kTileRows; ++k) {
      int32_t pair;
      std::memcpy(&pair, tile(a)[m] + 4 * k, sizeof(pair));
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_load_si512(tile(b)[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(right, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, high)),
                            _mm512_castsi512_ps(_mm512_and_si512(right, high)), odd);
    }
    uint8_t* const row = tile(sums)[m];
    _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), _mm512_add_ps(even, odd)));
  }
}

}  // namespace prosparse::testing

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig prosparse::testing::tile_loadconfig
#define _tile_release prosparse::testing::tile_release
#define _tile_zero prosparse::testing::tile_zero
#define _tile_loadd prosparse::testing::tile_loadd
#define _tile_stream_loadd prosparse::testing::tile_loadd
#define _tile_stored prosparse::testing::tile_stored
#define _tile_dpbf16ps prosparse::testing::tile_dpbf16ps

#endif  // PROSPARSE_TESTS_EMULATED_TILES_H_
