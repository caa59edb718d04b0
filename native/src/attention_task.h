// The arithmetic of one call of attention; attention.cc cuts it into tasks.
#ifndef PROSPARSE_ATTENTION_TASK_H_
#define PROSPARSE_ATTENTION_TASK_H_

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "cache_rows.h"

namespace prosparse {

constexpr size_t kChunk = 512;  // slots whose scores are in memory at once; a task of a single token

// Softmax over some chunks of the cache: y = the sum of exp(score - top) * value, total = the sum of exp(score - top).
struct Partial {
  float* y;  // [padded]
  float top, total;
};

inline void merge(Partial& into, const Partial& other, size_t padded) {
  const float top = std::max(into.top, other.top);
  const float a = std::exp(into.top - top), b = std::exp(other.top - top);
  for (size_t d = 0; d < padded; ++d) into.y[d] = into.y[d] * a + other.y[d] * b;
  into.total = into.total * a + other.total * b;
  into.top = top;
}

// Queries of one KV head and consecutive tokens: query r is head r % group of the KV head, token first + r / group.
struct Queries {
  size_t row, kv_head, first, count;
};

class AttentionCall {
 public:
  AttentionCall(const Kernels& kernels, const Attention& attention, const AttentionBatch& batch)
      : kernels_(kernels.attention),
        cache_(kernels.attention.cache[static_cast<size_t>(attention.format)]),
        of_(attention),
        batch_(batch),
        group_(attention.heads / attention.kv_heads),
        padded_(round_up(attention.head_dim, kLanes)),
        row_bytes_(cache_row_bytes(attention.format, attention.head_dim)) {}

  size_t group() const { return group_; }
  size_t padded() const { return padded_; }
  size_t new_tokens(size_t row) const { return std::min(batch_.tokens, batch_.lengths[row]); }
  size_t past(size_t row) const { return batch_.lengths[row] - new_tokens(row); }

  // The slots that the query of a position sees.
  Range visible(size_t position) const {
    return {of_.window != 0 && position >= of_.window ? position + 1 - of_.window : 0, position + 1};
  }

  // The end of a task that begins at position `begin`: its slots are consecutive in memory, and the cuts depend only on
  // positions.
  size_t cut(size_t begin, size_t end) const {
    return std::min({end, (begin / kChunk + 1) * kChunk, (begin / batch_.slots + 1) * batch_.slots});
  }

  // New tokens of a row that are appended before any of them is attended to: no key that one of them sees is
  // overwritten.
  Range part(size_t row, size_t index) const {
    const size_t count = new_tokens(row);
    const size_t most = batch_.lengths[row] <= batch_.slots ? count : batch_.slots - of_.window + 1;
    return {std::min(count, index * most), std::min(count, (index + 1) * most)};
  }

  // Appends a new token of one KV head to the cache. `rotated`: head_dim floats.
  void append(size_t row, size_t kv_head, size_t token, float* rotated) const {
    const size_t position = past(row) + token, at = slot(row, kv_head, position);
    const float* key = projected(row, token, of_.heads + kv_head);
    const float* value = projected(row, token, of_.heads + of_.kv_heads + kv_head);
    key = with_rope(key, position, rotated);
    if (of_.format == CacheFormat::kF32) {
      std::memcpy(batch_.keys + at, key, row_bytes_);
      std::memcpy(batch_.values + at, value, row_bytes_);
    } else {
      store_rows(key, value, of_.head_dim, reinterpret_cast<int8_t*>(batch_.keys + at),
                 reinterpret_cast<int8_t*>(batch_.values + at));
    }
  }

  // RoPE and the scale of the scores, [queries][padded].
  void read_queries(const Queries& q, float* out) const {
    for (size_t r = 0; r < q.count; ++r, out += padded_) {
      const size_t token = q.first + r / group_, position = past(q.row) + token;
      const float* x = with_rope(projected(q.row, token, q.kv_head * group_ + r % group_), position, out);
      for (size_t d = 0; d < of_.head_dim; ++d) out[d] = x[d] * of_.scale;
      std::fill(out + of_.head_dim, out + padded_, 0.0f);
    }
  }

  // Attention of the queries to positions [begin, end), of one task. `scores`: queries * kChunk.
  void attend(const Queries& q, const float* queries, Range slots, float* tile, float* scores,
              Partial* partials) const {
    const CacheRows keys{batch_.keys + slot(q.row, q.kv_head, slots.begin), of_.head_dim, slots.end - slots.begin};
    const CacheRows values{batch_.values + slot(q.row, q.kv_head, slots.begin), of_.head_dim, keys.count};
    cache_.scores(queries, q.count, keys, tile, scores, kChunk);
    for (size_t r = 0; r < q.count; ++r) {
      float* row = scores + r * kChunk;
      const Range own = part_of(slots, visible(past(q.row) + q.first + r / group_));
      partials[r].top = kernels_.top(row + own.begin, own.end - own.begin);
      partials[r].total = kernels_.exponentials(row + own.begin, own.end - own.begin, partials[r].top);
      std::fill(row, row + own.begin, 0.0f);
      std::fill(row + own.end, row + keys.count, 0.0f);
      std::fill_n(partials[r].y, padded_, 0.0f);
    }
    cache_.values(scores, kChunk, q.count, values, tile, partials[0].y);
    if (of_.format == CacheFormat::kF32) keep_apart(q, slots, scores, tile, partials);
  }

  // A value that is not finite must not reach queries that do not see it: 0 * Inf is NaN. Values of 8 bits are finite.
  void keep_apart(const Queries& q, Range slots, const float* scores, float* tile, Partial* partials) const {
    for (size_t r = 0; r < q.count; ++r) {
      if (is_finite(partials[r].y, padded_)) continue;
      const Range own = part_of(slots, visible(past(q.row) + q.first + r / group_));
      const size_t at = slot(q.row, q.kv_head, slots.begin) + own.begin * row_bytes_;
      std::fill_n(partials[r].y, padded_, 0.0f);
      cache_.values(scores + r * kChunk + own.begin, kChunk, 1, {batch_.values + at, of_.head_dim, own.end - own.begin},
                    tile, partials[r].y);
    }
  }

  void finish(const Queries& q, const Partial* partials) const {
    for (size_t r = 0; r < q.count; ++r) {
      const size_t token = q.first + r / group_, head = q.kv_head * group_ + r % group_;
      float* y = batch_.y + ((q.row * batch_.tokens + token) * of_.heads + head) * of_.head_dim;
      for (size_t d = 0; d < of_.head_dim; ++d) y[d] = partials[r].y[d] / partials[r].total;
    }
  }

 private:
  // The places among `slots` of those that are `seen`.
  static Range part_of(Range slots, Range seen) {
    return {std::clamp(seen.begin, slots.begin, slots.end) - slots.begin,
            std::clamp(seen.end, slots.begin, slots.end) - slots.begin};
  }

  const float* with_rope(const float* x, size_t position, float* rotated) const {
    if (of_.cos == nullptr) return x;
    rotate(x, of_.head_dim, of_.cos + position * of_.pairs, of_.sin + position * of_.pairs, of_.pairs, rotated);
    return rotated;
  }

  const float* projected(size_t row, size_t token, size_t head) const {
    return batch_.qkv + ((row * batch_.tokens + token) * (of_.heads + 2 * of_.kv_heads) + head) * of_.head_dim;
  }

  size_t slot(size_t row, size_t kv_head, size_t position) const {
    return ((row * of_.kv_heads + kv_head) * batch_.slots + position % batch_.slots) * row_bytes_;
  }

  const AttentionKernels& kernels_;
  const CacheKernels& cache_;
  const Attention& of_;
  const AttentionBatch& batch_;
  const size_t group_, padded_, row_bytes_;
};

}  // namespace prosparse

#endif  // PROSPARSE_ATTENTION_TASK_H_
