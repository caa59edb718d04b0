#include "attention_node.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../src/attention.h"
#include "../src/dispatch.h"
#include "attributes.h"
#include "ort_pool.h"
#include "tensor.h"

namespace prosparse::ort {
namespace {

constexpr size_t kQkv = 0, kKeys = 1, kValues = 2, kLengths = 3, kTotal = 4, kCos = 5, kSin = 6;  // inputs

class Node : public Kernel {
 public:
  Node(const Operator& op, const Api& table, const KernelInfo* info)
      : Kernel(table),
        where_(op.name + " node '" + node_name(table, info) + "'"),
        rotary_(op.kind == Kind::kRotaryAttention) {
    const Choice choice = choose_variant(std::getenv("PROSPARSE_ISA"));
    if (choice.kernels == nullptr) throw InvalidArgument(choice.error);
    kernels_ = choice.kernels;
    const int64_t heads = int_attribute(table, info, "num_heads", where_);
    const int64_t kv_heads = int_attribute(table, info, "kv_num_heads", where_);
    const int64_t window = int_attribute(table, info, "local_window_size", where_);
    attention_.scale = float_attribute(table, info, "scale", where_);
    attention_.format = op.format == Format::kF32 ? CacheFormat::kF32 : CacheFormat::kI8;
    const int64_t no_window = is_float() ? -1 : 0;
    const bool has_scale = std::isfinite(attention_.scale) && (attention_.scale != 0.0f || !is_float());
    if (kv_heads < 1 || heads < kv_heads || heads % kv_heads != 0 || (window < 1 && window != no_window) ||
        !has_scale) {
      throw InvalidArgument(
          where_ + ": expected num_heads to be a multiple of kv_num_heads, local_window_size " +
          (is_float() ? "-1 or at least 1, and scale finite and nonzero" : "0 or more, and scale finite") + "; got " +
          std::to_string(heads) + ", " + std::to_string(kv_heads) + ", " + std::to_string(window) + ", and " +
          std::to_string(attention_.scale));
    }
    attention_.heads = static_cast<size_t>(heads);
    attention_.kv_heads = static_cast<size_t>(kv_heads);
    attention_.window = static_cast<size_t>(std::max<int64_t>(window, 0));
  }

  void compute(KernelContext* context) override {
    Attention of = attention_;
    const Tensor qkv = input(context, kQkv, kFloat, "qkv");
    const size_t all_heads = of.heads + 2 * of.kv_heads;
    if (qkv.shape.size() != 3 || qkv.shape[2] < 1 || qkv.shape[2] % static_cast<int64_t>(all_heads) != 0) {
      throw InvalidArgument(where_ + ": qkv: expected shape [batch, sequence, " + std::to_string(all_heads) +
                            " * head_dim], got " + to_string(qkv.shape));
    }
    of.head_dim = static_cast<size_t>(qkv.shape[2]) / all_heads;
    if (rotary_) read_angles(context, of);
    const ElementType cache = is_float() ? kFloat : kInt8;
    const Tensor past[] = {input(context, kKeys, cache, "past_key"), input(context, kValues, cache, "past_value")};
    check_cache(past[0], qkv.shape[0], of, "past_key");
    check_cache(past[1], qkv.shape[0], of, "past_value");
    const size_t past_slots = static_cast<size_t>(past[0].shape[2]);
    if (past[1].shape[2] != past[0].shape[2]) {
      throw InvalidArgument(where_ + ": past_value: expected the slots of past_key, " + to_string(past[0].shape) +
                            ", got " + to_string(past[1].shape));
    }
    AttentionBatch batch{};
    batch.qkv = static_cast<const float*>(qkv.data);
    batch.rows = static_cast<size_t>(qkv.shape[0]);
    batch.tokens = static_cast<size_t>(qkv.shape[1]);
    const bool keeps_window = !is_float() && of.window != 0 && past_slots >= of.window;
    batch.slots = keeps_window ? past_slots : std::max(past_slots, total(context));
    const std::vector<size_t> lengths = read_lengths(context, batch, of, past_slots, keeps_window);
    batch.lengths = lengths.data();
    batch.y = static_cast<float*>(
        output(context, 0, {qkv.shape[0], qkv.shape[1], static_cast<int64_t>(of.heads * of.head_dim)}));
    std::vector<int64_t> shape = past[0].shape;
    shape[2] = static_cast<int64_t>(batch.slots);
    batch.keys = static_cast<uint8_t*>(output(context, 1, shape));
    batch.values = static_cast<uint8_t*>(output(context, 2, shape));
    Call call(api, context, *pool_, threads_);
    const Parallel parallel = call.parallel();
    copy_past(static_cast<const uint8_t*>(past[0].data), past_slots, of, batch, parallel, batch.keys);
    copy_past(static_cast<const uint8_t*>(past[1].data), past_slots, of, batch, parallel, batch.values);
    run_attention(*kernels_, of, batch, parallel, call.scratch());
    check(call.take_failure());
  }

 private:
  bool is_float() const { return attention_.format == CacheFormat::kF32; }

  Tensor input(KernelContext* context, size_t index, ElementType type, const char* name) const {
    const Value* value = nullptr;
    check(api.KernelContext_GetInput(context, index, &value));
    return read_tensor(api, value, type, where_ + ": " + name);
  }

  void* output(KernelContext* context, size_t index, const std::vector<int64_t>& shape) const {
    Value* value = nullptr;
    check(api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api.GetTensorMutableData(value, &data));
    return data;
  }

  void read_angles(KernelContext* context, Attention& of) const {
    const Tensor cos = input(context, kCos, kFloat, "cos"), sin = input(context, kSin, kFloat, "sin");
    if (cos.shape.size() != 2 || cos.shape != sin.shape || cos.shape[1] < 1 ||
        cos.shape[1] > static_cast<int64_t>(of.head_dim / 2)) {
      throw InvalidArgument(where_ + ": cos and sin: expected the same shape [positions, 1 to " +
                            std::to_string(of.head_dim / 2) + "], got " + to_string(cos.shape) + " and " +
                            to_string(sin.shape));
    }
    of.cos = static_cast<const float*>(cos.data);
    of.sin = static_cast<const float*>(sin.data);
    of.positions = static_cast<size_t>(cos.shape[0]);
    of.pairs = static_cast<size_t>(cos.shape[1]);
  }

  void check_cache(const Tensor& past, int64_t rows, const Attention& of, const char* name) const {
    const int64_t kv_heads = static_cast<int64_t>(of.kv_heads),
                  width = static_cast<int64_t>(is_float() ? of.head_dim : cache_row_bytes(of.head_dim));
    if (past.shape.size() != 4 || past.shape[0] != rows || past.shape[1] != kv_heads || past.shape[3] != width) {
      throw InvalidArgument(where_ + ": " + name + ": expected shape [" + std::to_string(rows) + ", " +
                            std::to_string(kv_heads) + ", past, " + std::to_string(width) + "], got " +
                            to_string(past.shape));
    }
  }

  size_t total(KernelContext* context) const {
    const Tensor tensor = input(context, kTotal, kInt32, "total_sequence_length");
    if (!tensor.shape.empty() && tensor.shape != std::vector<int64_t>{1}) {
      throw InvalidArgument(where_ + ": total_sequence_length: expected a scalar, got " + to_string(tensor.shape));
    }
    return static_cast<size_t>(std::max(*static_cast<const int32_t*>(tensor.data), 0));
  }

  std::vector<size_t> read_lengths(KernelContext* context, const AttentionBatch& batch, const Attention& of,
                                   size_t past_slots, bool keeps_window) const {
    const Tensor last = input(context, kLengths, kInt32, "seqlens_k");
    if (last.shape != std::vector<int64_t>{static_cast<int64_t>(batch.rows)}) {
      throw InvalidArgument(where_ + ": seqlens_k: expected shape [" + std::to_string(batch.rows) + "], got " +
                            to_string(last.shape));
    }
    size_t most = keeps_window ? std::numeric_limits<int32_t>::max() : std::min(batch.slots, past_slots + batch.tokens);
    if (rotary_) most = std::min(most, of.positions);
    std::vector<size_t> lengths;
    for (size_t row = 0; row < batch.rows; ++row) {
      const int64_t length = int64_t{static_cast<const int32_t*>(last.data)[row]} + 1;
      if (length < 0 || static_cast<size_t>(length) > most) {
        throw InvalidArgument(where_ + ": seqlens_k: row " + std::to_string(row) + " has " + std::to_string(length) +
                              " tokens; expected at most " + std::to_string(most) +
                              " (total_sequence_length, RoPE's positions, tokens in the cache and new ones)");
      }
      lengths.push_back(static_cast<size_t>(length));
    }
    return lengths;
  }

  // Where past and present share a buffer, the past tokens are in place.
  void copy_past(const uint8_t* past, size_t past_slots, const Attention& of, const AttentionBatch& batch,
                 const Parallel& parallel, uint8_t* present) const {
    const size_t row = cache_row_bytes(of.format, of.head_dim);
    if (present == past) return;
    parallel_for(parallel, batch.rows * of.kv_heads, [&](size_t i) {
      uint8_t* to = present + i * batch.slots * row;
      std::memcpy(to, past + i * past_slots * row, past_slots * row);
      std::memset(to + past_slots * row, 0, (batch.slots - past_slots) * row);
    });
  }

  std::string where_;  // "RotaryCachedAttentionI8 node 'layer 3'"
  bool rotary_;
  const Kernels* kernels_ = nullptr;
  Attention attention_{};
  std::atomic<size_t> threads_{1};  // the most that were seen to share a loop
  std::shared_ptr<ScratchPool> pool_ = ScratchPool::shared();
};

}  // namespace

std::unique_ptr<Kernel> make_attention(const Operator& op, const Api& api, const KernelInfo* info) {
  return std::make_unique<Node>(op, api, info);
}

}  // namespace prosparse::ort
