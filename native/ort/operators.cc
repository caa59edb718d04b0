// Creating and running one node.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../src/dispatch.h"
#include "../src/ffn.h"
#include "../src/file_pages.h"
#include "../src/pack.h"
#include "../src/rounded_ffn.h"
#include "attention_node.h"
#include "attributes.h"
#include "custom_op.h"
#include "ort_pool.h"
#include "tensor.h"
#include "weight_inputs.h"

namespace prosparse::ort {
namespace {

Activation parse_activation(const std::string& name, bool gated, const std::string& where) {
  if (name == "relu" || name == "fatrelu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  if (name == "drelu" && gated) return Activation::kDrelu;
  if (name == "silu" && gated) return Activation::kSilu;
  throw InvalidArgument(where + ": activation: expected relu, relu2" +
                        (gated ? ", fatrelu, drelu or silu" : " or fatrelu") + ", got '" + name + "'");
}

class Node : public Kernel {
 public:
  Node(const Operator& op, const Api& table, const KernelInfo* info)
      : Kernel(table), where_(op.name + " node '" + node_name(table, info) + "'") {
    const Choice choice = choose_variant(std::getenv("PROSPARSE_ISA"));
    if (choice.kernels == nullptr) throw InvalidArgument(choice.error);
    kernels_ = choice.kernels;
    rounded_ = op.rounded;
    linear_ = op.kind == Kind::kLinear;
    ffn_.gated = op.kind == Kind::kGated;
    if (!linear_) read_attributes(info);
    pack(read_weights(op, table, info, where_));
  }

  void compute(KernelContext* context) override {
    const Value* input = nullptr;
    check(api.KernelContext_GetInput(context, 0, &input));
    const Tensor x = read_tensor(api, input, kFloat, where_ + ": x");
    // Stored rows of I4 end with a whole group, so a Linear may use its last group in part; an FFN knows d_model.
    const bool fits = !x.shape.empty() && (x.shape.back() == static_cast<int64_t>(d_in_) ||
                                           (linear_ && element_bits(ffn_.gate.format) < 8 && x.shape.back() > 0 &&
                                            groups_of(static_cast<size_t>(x.shape.back())) == groups_of(d_in_)));
    if (!fits) {
      throw InvalidArgument(where_ + ": x: expected shape [..., " + std::to_string(d_in_) + "], got " +
                            to_string(x.shape));
    }
    size_t tokens = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) tokens *= static_cast<size_t>(x.shape[i]);
    std::vector<int64_t> shape = x.shape;
    shape.back() = static_cast<int64_t>(linear_ ? ffn_.gate.rows : d_in_);
    Value* output = nullptr;
    check(api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &output));
    void* y = nullptr;
    check(api.GetTensorMutableData(output, &y));
    Call call(api, context, *pool_, threads_);
    const Parallel parallel = call.parallel();
    const float* data = static_cast<const float*>(x.data);
    if (linear_) {
      (rounded_ ? run_rounded_linear : run_linear)(*kernels_, ffn_.gate, data, tokens,
                                                   static_cast<size_t>(x.shape.back()), static_cast<float*>(y),
                                                   parallel, call.scratch());
    } else {
      (rounded_ ? run_rounded_ffn : run_ffn)(*kernels_, ffn_, data, tokens, static_cast<float*>(y), parallel,
                                             call.scratch());
    }
    check(call.take_failure());
  }

 private:
  void read_attributes(const KernelInfo* info) {
    ffn_.activation = parse_activation(string_attribute(api, info, "activation", where_), ffn_.gated, where_);
    ffn_.threshold = float_attribute(api, info, "threshold", where_);
    if (!(ffn_.threshold >= 0.0f) || std::isinf(ffn_.threshold)) {
      throw InvalidArgument(where_ + ": threshold: expected a finite number >= 0, got " +
                            std::to_string(ffn_.threshold));
    }
    const char* dense = std::getenv("PROSPARSE_DENSE");
    ffn_.dense = dense != nullptr && std::strcmp(dense, "1") == 0;
  }

  static void drop(const Weight& weight) {
    const Matrix& matrix = weight.matrix;
    drop_file_pages(matrix.data, matrix.rows * stored_row_bytes(matrix.format, matrix.cols));
    if (matrix.scales != nullptr)
      drop_file_pages(matrix.scales, matrix.rows * groups_of(matrix.cols) * sizeof(uint16_t));
  }

  void pack(const std::vector<Weight>& weights) {
    size_t bytes = panels_bytes(weights[0].matrix);
    for (size_t i = 1; i < weights.size(); ++i) bytes += rows_bytes(weights[i].matrix);
    try {
      repack(weights, bytes);
    } catch (const std::bad_alloc&) {
      constexpr size_t kMiB = size_t{1} << 20;
      throw std::runtime_error(where_ + ": weights: cannot allocate " + std::to_string((bytes + kMiB - 1) / kMiB) +
                               " MiB");
    }
    d_in_ = ffn_.d_model = weights[0].matrix.cols;
    ffn_.d_ff = weights[0].matrix.rows;
  }

  void repack(const std::vector<Weight>& weights, size_t bytes) {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
    arena_ = std::make_unique<Arena>(bytes);
    ffn_.gate = pack_panels(weights[0].matrix, weights[0].bias, *arena_, threads, rounded_);
    drop(weights[0]);
    for (size_t i = 1; i < weights.size(); ++i) {
      const bool is_down = i + 1 == weights.size();
      (is_down ? ffn_.down : ffn_.up) = pack_rows(weights[i].matrix, weights[i].bias,
                                                  is_down ? RowOrder::kAxpy : kernels_->up_order, *arena_, threads);
      drop(weights[i]);
    }
  }

  std::string where_;  // "SparseFFNF32 node 'layer 3'"
  const Kernels* kernels_ = nullptr;
  std::unique_ptr<Arena> arena_;
  Ffn ffn_{};  // of a Linear, `gate` alone
  bool linear_ = false, rounded_ = false;
  size_t d_in_ = 0;
  std::atomic<size_t> threads_{1};  // the most that were seen to share a loop
  std::shared_ptr<ScratchPool> pool_ = ScratchPool::shared();
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const Operator& op, const Api& api, const KernelInfo* info) {
  if (is_attention(op.kind)) return make_attention(op, api, info);
  return std::make_unique<Node>(op, api, info);
}

}  // namespace prosparse::ort
