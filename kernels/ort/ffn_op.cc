#include "ffn_op.h"

#include <cmath>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "../src/dispatch.h"
#include "../src/ffn.h"
#include "tensor.h"

namespace prosparse::ort {
namespace {

constexpr const char* kGatedInputs[] = {"x", "w_gate", "b_gate", "w_up", "b_up", "w_down", "b_down"};
constexpr const char* kPlainInputs[] = {"x", "w_up", "b_up", "w_down", "b_down"};

struct FfnOp : CustomOp {
  const char* name;
  bool gated;
  const char* const* inputs;
  size_t input_count;
};

struct FfnKernel {
  const Api& api;
  const FfnKernels* kernels;
  Ffn ffn;
  ScratchPool scratch;
  std::string where;  // "SparseFFNF32 node 'layer 3'"
};

std::string node_name(const Api& api, const KernelInfo* info) {
  char name[256] = "";
  size_t size = sizeof(name);
  if (Status* status = api.KernelInfo_GetNodeName(info, name, &size)) {  // longer: not worth an error
    api.ReleaseStatus(status);
    return "?";
  }
  return name;
}

std::string string_attribute(const Api& api, const KernelInfo* info, const char* name, const std::string& where) {
  char value[64] = "";
  size_t size = sizeof(value);
  if (Status* status = api.KernelInfoGetAttribute_string(info, name, value, &size)) {
    api.ReleaseStatus(status);
    throw InvalidArgument(where + ": expected a string attribute '" + name + "' of at most 63 characters, got none");
  }
  return value;
}

float float_attribute(const Api& api, const KernelInfo* info, const char* name, const std::string& where) {
  float value = 0.0f;
  if (Status* status = api.KernelInfoGetAttribute_float(info, name, &value)) {
    api.ReleaseStatus(status);
    throw InvalidArgument(where + ": expected a float attribute '" + name + "', got none");
  }
  return value;
}

Activation parse_activation(const std::string& name, bool gated, const std::string& where) {
  if (name == "relu" || name == "fatrelu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  if (name == "drelu" && gated) return Activation::kDrelu;
  throw InvalidArgument(where + ": activation: expected relu, relu2, fatrelu" + (gated ? " or drelu" : "") +
                        ", got '" + name + "'");
}

Tensor constant_input(const Api& api, const KernelInfo* info, size_t index, const std::string& what) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant || value == nullptr) throw InvalidArgument(what + ": expected an initializer, got a computed value");
  return read_tensor(api, value, what);
}

FfnKernel* create_kernel(const FfnOp& op, const Api& api, const KernelInfo* info) {
  const std::string where = std::string(op.name) + " node '" + node_name(api, info) + "'";
  const Choice choice = choose_variant(std::getenv("PROSPARSE_ISA"));
  if (choice.kernels == nullptr) throw InvalidArgument(choice.error);
  Ffn ffn{};
  ffn.activation = parse_activation(string_attribute(api, info, "activation", where), op.gated, where);
  ffn.threshold = float_attribute(api, info, "threshold", where);
  if (!(ffn.threshold >= 0.0f) || std::isinf(ffn.threshold)) {
    throw InvalidArgument(where + ": threshold: expected a finite number >= 0, got " + std::to_string(ffn.threshold));
  }
  std::vector<int64_t> matrix;  // [d_ff, d_model], by the first matrix
  std::vector<const float*> data;
  for (size_t i = 1; i < op.input_count; ++i) {
    const std::string what = where + ": " + op.inputs[i];
    const Tensor tensor = constant_input(api, info, i, what);
    const bool is_matrix = op.inputs[i][0] == 'w';
    if (matrix.empty()) {
      if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
        throw InvalidArgument(what + ": expected shape [d_ff, d_model], got " + to_string(tensor.shape));
      }
      matrix = tensor.shape;
    }
    const bool is_last = i + 1 == op.input_count;
    const std::vector<int64_t> expected = is_matrix ? matrix : std::vector<int64_t>{is_last ? matrix[1] : matrix[0]};
    if (tensor.shape != expected) {
      throw InvalidArgument(what + ": expected shape " + to_string(expected) + " to go with " + op.inputs[1] + " " +
                            to_string(matrix) + ", got " + to_string(tensor.shape));
    }
    data.push_back(tensor.data);
  }
  size_t next = 0;
  if (op.gated) {
    ffn.w_gate = data[next++];
    ffn.b_gate = data[next++];
  }
  ffn.w_up = data[next++];
  ffn.b_up = data[next++];
  ffn.w_down = data[next++];
  ffn.b_down = data[next++];
  ffn.d_ff = static_cast<size_t>(matrix[0]);
  ffn.d_model = static_cast<size_t>(matrix[1]);
  return new FfnKernel{api, choice.kernels, ffn, ScratchPool(ffn.d_ff), where};
}

struct OrtPool {
  const Api& api;
  const KernelContext* context;
  Status* failure;  // the first one
};

void run_on_pool(void* pool_pointer, size_t count, void (*task)(void*, size_t), void* argument) {
  OrtPool& pool = *static_cast<OrtPool*>(pool_pointer);
  Status* status = pool.api.KernelContext_ParallelFor(pool.context, task, count, 0, argument);
  if (status == nullptr) return;
  if (pool.failure == nullptr) {
    pool.failure = status;
  } else {
    pool.api.ReleaseStatus(status);
  }
}

void compute(FfnKernel& kernel, KernelContext* context) {
  const Api& api = kernel.api;
  const Value* input = nullptr;
  check(api.KernelContext_GetInput(context, 0, &input));
  const Tensor x = read_tensor(api, input, kernel.where + ": x");
  if (x.shape.empty() || x.shape.back() != static_cast<int64_t>(kernel.ffn.d_model)) {
    throw InvalidArgument(kernel.where + ": x: expected shape [..., " + std::to_string(kernel.ffn.d_model) + "], got " +
                          to_string(x.shape));
  }
  size_t tokens = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) tokens *= static_cast<size_t>(x.shape[i]);
  Value* output = nullptr;
  check(api.KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &output));
  void* y = nullptr;
  check(api.GetTensorMutableData(output, &y));
  std::unique_ptr<Scratch> scratch = kernel.scratch.take();
  OrtPool pool{api, context, nullptr};
  run_ffn(*kernel.kernels, kernel.ffn, x.data, tokens, static_cast<float*>(y), {run_on_pool, &pool}, *scratch);
  kernel.scratch.give_back(std::move(scratch));
  check(pool.failure);
}

const FfnOp& self(const CustomOp* op) { return *static_cast<const FfnOp*>(op); }

FfnOp make_op(const char* name, bool gated, const char* const* inputs, size_t input_count) {
  FfnOp op{};
  op.version = kApiVersion;
  op.name = name;
  op.gated = gated;
  op.inputs = inputs;
  op.input_count = input_count;
  op.GetName = [](const CustomOp* o) { return self(o).name; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetInputTypeCount = [](const CustomOp* o) { return self(o).input_count; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.GetMayInplace = [](int**, int**) -> size_t { return 0; };
  op.ReleaseMayInplace = [](int*, int*) {};
  op.GetAliasMap = [](int**, int**) -> size_t { return 0; };
  op.ReleaseAliasMap = [](int*, int*) {};
  op.CreateKernelV2 = [](const CustomOp* o, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(*api, [&] { *kernel = create_kernel(self(o), *api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, KernelContext* context) {
    FfnKernel& ffn = *static_cast<FfnKernel*>(kernel);
    return guarded(ffn.api, [&] { compute(ffn, context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<FfnKernel*>(kernel); };
  return op;
}

}  // namespace

const CustomOp* const* custom_ops() {
  static const FfnOp gated = make_op("SparseGatedFFNF32", true, kGatedInputs, std::size(kGatedInputs));
  static const FfnOp plain = make_op("SparseFFNF32", false, kPlainInputs, std::size(kPlainInputs));
  static const CustomOp* const ops[] = {&gated, &plain, nullptr};
  return ops;
}

}  // namespace prosparse::ort
