// RoPE, and rounding to rows of an 8-bit KV cache: the same bits on every processor.
#ifndef PROSPARSE_CACHE_ROWS_H_
#define PROSPARSE_CACHE_ROWS_H_

#include "prosparse/attention.h"

namespace prosparse {

// y = x rotated by the angles of one position: pairs (d, d + pairs) for d < pairs, the rest copied. y may be x.
void rotate(const float* x, size_t head_dim, const float* cos, const float* sin, size_t pairs, float* y);

// Whether all elements are.
bool is_finite(const float* x, size_t count);

// Stores a token's key and value, [head_dim] each, as rows of the cache; see attention.h.
void store_rows(const float* key, const float* value, size_t head_dim, int8_t* key_row, int8_t* value_row);

}  // namespace prosparse

#endif  // PROSPARSE_CACHE_ROWS_H_
