#include "attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cache_rows.h"

namespace prosparse {
namespace {

constexpr size_t kChunk = 512;     // slots whose scores are in memory at once; a task of a single token
constexpr size_t kQueryRows = 64;  // queries that share what is read of the cache
constexpr size_t kWorkers = 32;    // tasks that run at once, each with work space

// Softmax over some chunks of the cache: y = the sum of exp(score - top) * value, total = the sum of exp(score - top).
struct Partial {
  float* y;  // [padded]
  float top, total;
};

void merge(Partial& into, const Partial& other, size_t padded) {
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

class Call {
 public:
  Call(const Kernels& kernels, const Attention& attention, const AttentionBatch& batch)
      : kernels_(kernels.attention),
        of_(attention),
        batch_(batch),
        group_(attention.heads / attention.kv_heads),
        padded_(round_up(attention.head_dim, kLanes)),
        row_bytes_(cache_row_bytes(attention.head_dim)) {}

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
    store_rows(with_rope(key, position, rotated), value, of_.head_dim, batch_.keys + at, batch_.values + at);
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
    kernels_.scores(queries, q.count, keys, tile, scores, kChunk);
    for (size_t r = 0; r < q.count; ++r) {
      float* row = scores + r * kChunk;
      const Range seen = visible(past(q.row) + q.first + r / group_);
      const size_t begin = std::clamp(seen.begin, slots.begin, slots.end) - slots.begin;
      const size_t end = std::clamp(seen.end, slots.begin, slots.end) - slots.begin;
      partials[r].top = kernels_.top(row + begin, end - begin);
      partials[r].total = kernels_.exponentials(row + begin, end - begin, partials[r].top);
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + keys.count, 0.0f);
      std::fill_n(partials[r].y, padded_, 0.0f);
    }
    kernels_.values(scores, kChunk, q.count, values, tile, partials[0].y);
  }

  void finish(const Queries& q, const Partial* partials) const {
    for (size_t r = 0; r < q.count; ++r) {
      const size_t token = q.first + r / group_, head = q.kv_head * group_ + r % group_;
      float* y = batch_.y + ((q.row * batch_.tokens + token) * of_.heads + head) * of_.head_dim;
      for (size_t d = 0; d < of_.head_dim; ++d) y[d] = partials[r].y[d] / partials[r].total;
    }
  }

 private:
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
  const Attention& of_;
  const AttentionBatch& batch_;
  const size_t group_, padded_, row_bytes_;
};

// What one worker computes in.
struct Work {
  float *queries, *tile, *scores;
  static size_t floats(size_t queries, size_t padded) { return queries * (padded + kChunk) + kKeyTile * padded; }
  Work(float* memory, size_t count, size_t padded)
      : queries(memory), tile(queries + count * padded), scores(tile + kKeyTile * padded) {}
};

// Room for the results of `count` queries.
struct Partials {
  static size_t floats(size_t count, size_t padded) { return count * padded; }
  std::vector<Partial> of;
  Partials(float* memory, size_t count, size_t padded) : of(count) {
    for (size_t r = 0; r < count; ++r) of[r] = {memory + r * padded, 0.0f, 0.0f};
  }
};

// Runs task(i, worker) for every i in [0, count).
template <class Task>
void on_workers(const Parallel& parallel, size_t count, const Task& task) {
  const size_t workers = std::min(count, kWorkers);
  if (count == 0) return;
  parallel_for(parallel, workers, [&](size_t worker) {
    const Range own = piece(count, workers, worker, 1);
    for (size_t i = own.begin; i < own.end; ++i) task(i, worker);
  });
}

// One new token per row: a task for each chunk of the cache, whose results are then added up in order.
void run_step(const Call& call, const Attention& of, const AttentionBatch& batch, const Parallel& parallel,
              Scratch& scratch) {
  const size_t group = call.group(), padded = call.padded(), work = Work::floats(group, padded);
  struct Task {
    Queries queries;
    Range slots;
    bool is_last;
  };
  std::vector<Task> tasks;
  for (size_t row = 0; row < batch.rows; ++row) {
    const Range seen = call.visible(call.past(row));
    for (size_t head = 0; head < of.kv_heads && batch.lengths[row] != 0; ++head) {
      for (size_t begin = seen.begin, end; begin < seen.end; begin = end) {
        end = call.cut(begin, seen.end);
        tasks.push_back({{row, head, 0, group}, {begin, end}, end == seen.end});
      }
    }
  }
  float* memory = scratch.attention.get<float>(kWorkers * work + tasks.size() * Partials::floats(group, padded));
  Partials partials(memory + kWorkers * work, tasks.size() * group, padded);
  on_workers(parallel, tasks.size(), [&](size_t i, size_t worker) {
    const Task& task = tasks[i];
    const Work own(memory + worker * work, group, padded);
    if (task.is_last) call.append(task.queries.row, task.queries.kv_head, 0, own.queries);
    call.read_queries(task.queries, own.queries);
    call.attend(task.queries, own.queries, task.slots, own.tile, own.scores, &partials.of[i * group]);
  });
  for (size_t first = 0, i = 0; i < tasks.size(); ++i) {
    for (size_t r = 0; r < group && i != first; ++r)
      merge(partials.of[first * group + r], partials.of[i * group + r], padded);
    if (!tasks[i].is_last) continue;
    call.finish(tasks[i].queries, &partials.of[first * group]);
    first = i + 1;
  }
}

// Part `index` of each row's new tokens: all are appended, then some at a time share what is read of the cache. False
// if no row has such a part.
bool run_part(const Call& call, const Attention& of, const AttentionBatch& batch, size_t index,
              const Parallel& parallel, Scratch& scratch) {
  const size_t padded = call.padded(), tokens = std::max<size_t>(1, kQueryRows / call.group());
  const size_t most = tokens * call.group(), work = Work::floats(most, padded) + 2 * Partials::floats(most, padded);
  float* memory = scratch.attention.get<float>(kWorkers * work);
  std::vector<Queries> tasks;
  for (size_t row = 0; row < batch.rows; ++row) {
    const Range part = call.part(row, index);
    for (size_t head = 0; head < of.kv_heads; ++head) {
      for (size_t first = part.begin; first < part.end; first += tokens)
        tasks.push_back({row, head, first, std::min(tokens, part.end - first) * call.group()});
    }
  }
  on_workers(parallel, tasks.size(), [&](size_t i, size_t worker) {
    const Queries& q = tasks[i];
    for (size_t r = 0; r < q.count; r += call.group())
      call.append(q.row, q.kv_head, q.first + r / call.group(), memory + worker * work);
  });
  on_workers(parallel, tasks.size(), [&](size_t i, size_t worker) {
    const Queries& q = tasks[i];
    float* own = memory + worker * work;
    const Work space(own, most, padded);
    own += Work::floats(most, padded);
    Partials sum(own, most, padded), chunk(own + Partials::floats(most, padded), most, padded);
    call.read_queries(q, space.queries);
    const size_t position = call.past(q.row) + q.first;
    const Range seen{call.visible(position).begin, position + q.count / call.group()};
    for (size_t begin = seen.begin, end; begin < seen.end; begin = end) {
      end = call.cut(begin, seen.end);
      const bool is_first = begin == seen.begin;
      Partials& into = is_first ? sum : chunk;
      call.attend(q, space.queries, {begin, end}, space.tile, space.scores, into.of.data());
      for (size_t r = 0; r < q.count && !is_first; ++r) merge(sum.of[r], chunk.of[r], padded);
    }
    call.finish(q, sum.of.data());
  });
  return !tasks.empty();
}

// Several new tokens per row.
void run_prompt(const Call& call, const Attention& of, const AttentionBatch& batch, const Parallel& parallel,
                Scratch& scratch) {
  for (size_t index = 0; run_part(call, of, batch, index, parallel, scratch); ++index) {
  }
}

void clear_padding(const Call& call, const Attention& of, const AttentionBatch& batch) {
  const size_t width = of.heads * of.head_dim;
  for (size_t row = 0; row < batch.rows; ++row) {
    float* y = batch.y + row * batch.tokens * width;
    std::fill(y + call.new_tokens(row) * width, y + batch.tokens * width, 0.0f);
  }
}

}  // namespace

void run_attention(const Kernels& kernels, const Attention& attention, const AttentionBatch& batch,
                   const Parallel& parallel, Scratch& scratch) {
  const Call call(kernels, attention, batch);
  clear_padding(call, attention, batch);
  (batch.tokens == 1 ? run_step : run_prompt)(call, attention, batch, parallel, scratch);
}

}  // namespace prosparse
