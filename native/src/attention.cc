#include "attention.h"

#include <algorithm>
#include <vector>

#include "attention_task.h"

namespace prosparse {
namespace {

constexpr size_t kQueryRows = 64;  // queries that share what is read of the cache
constexpr size_t kWorkers = 32;    // tasks that run at once, each with work space

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
void run_step(const AttentionCall& call, const Attention& of, const AttentionBatch& batch, const Parallel& parallel,
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
bool run_part(const AttentionCall& call, const Attention& of, const AttentionBatch& batch, size_t index,
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
void run_prompt(const AttentionCall& call, const Attention& of, const AttentionBatch& batch, const Parallel& parallel,
                Scratch& scratch) {
  for (size_t index = 0; run_part(call, of, batch, index, parallel, scratch); ++index) {
  }
}

void clear_padding(const AttentionCall& call, const Attention& of, const AttentionBatch& batch) {
  const size_t width = of.heads * of.head_dim;
  for (size_t row = 0; row < batch.rows; ++row) {
    float* y = batch.y + row * batch.tokens * width;
    std::fill(y + call.new_tokens(row) * width, y + batch.tokens * width, 0.0f);
  }
}

}  // namespace

void run_attention(const Kernels& kernels, const Attention& attention, const AttentionBatch& batch,
                   const Parallel& parallel, Scratch& scratch) {
  const AttentionCall call(kernels, attention, batch);
  clear_padding(call, attention, batch);
  (batch.tokens == 1 ? run_step : run_prompt)(call, attention, batch, parallel, scratch);
}

}  // namespace prosparse
