// The operators of domain com.prosparse, as onnxruntime's custom ops.
#ifndef PROSPARSE_ORT_CUSTOM_OP_H_
#define PROSPARSE_ORT_CUSTOM_OP_H_

#include <memory>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "prosparse/weights.h"

namespace prosparse::ort {

enum class Kind { kGated, kUngated, kLinear, kAttention, kRotaryAttention };
constexpr bool is_attention(Kind kind) { return kind >= Kind::kAttention; }

struct Operator : CustomOp {
  std::string name;  // SparseGatedFFNI4
  Kind kind;
  Format format;  // of all matrices but down_proj; of attention's KV cache: kF32 or kI8
  Format down;    // the same, or of kMixedFormats
  bool rounded;   // accuracy level 4
  std::vector<ElementType> inputs, outputs;
};

// One node's kernel. Concurrent calls of `compute` are safe.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(KernelContext* context) = 0;
  const Api& api;

 protected:
  explicit Kernel(const Api& table) : api(table) {}
};

// Reads attributes and weights, and repacks the weights. Throws InvalidArgument or Reported.
std::unique_ptr<Kernel> make_kernel(const Operator& op, const Api& api, const KernelInfo* info);

// Descriptions with static lifetime; null-terminated. Kernels use the variant that PROSPARSE_ISA or
// the machine chooses.
const CustomOp* const* custom_ops();

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_CUSTOM_OP_H_
