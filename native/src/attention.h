// One call of attention over a KV cache, cut into tasks.
#ifndef PROSPARSE_ATTENTION_CALL_H_
#define PROSPARSE_ATTENTION_CALL_H_

#include "parallel.h"
#include "prosparse/kernels.h"
#include "scratch.h"

namespace prosparse {

struct Attention {
  CacheFormat format;
  size_t heads, kv_heads, head_dim;
  float scale;       // of the scores
  size_t window;     // keys that a query sees, its own included; 0: all
  const float* cos;  // [positions][pairs]; null without RoPE
  const float* sin;  // likewise
  size_t positions, pairs;
};

// Tokens of several rows. Row b has lengths[b] tokens in all; the last min(tokens, lengths[b]) of them are new, and
// begin at qkv[b][0]. Everything beyond is padding, whose results are 0.
struct AttentionBatch {
  const float* qkv;  // [rows][tokens][(heads + 2 * kv_heads) * head_dim]
  size_t rows, tokens;
  const size_t* lengths;
  uint8_t* keys;    // [rows][kv_heads][slots] rows of the cache's format, position p in slot p % slots
  uint8_t* values;  // likewise
  size_t slots;     // at least the tokens of a row, or the window
  float* y;         // [rows][tokens][heads * head_dim]
};

// Appends the new keys and values to the cache and computes y. Each result has one order of operations, which does not
// depend on threads or on other rows.
void run_attention(const Kernels& kernels, const Attention& attention, const AttentionBatch& batch,
                   const Parallel& parallel, Scratch& scratch);

}  // namespace prosparse

#endif  // PROSPARSE_ATTENTION_CALL_H_
