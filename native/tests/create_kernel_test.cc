// What onnxruntime is told when a session is made and memory runs out, or a type is not the operator's.
#include <algorithm>
#include <string>

#include "../ort/custom_op.h"
#include "../ort/status.h"
#include "failing_memory.h"
#include "matrices.h"

// A stand-in for onnxruntime, as far as one node's creation needs it.
namespace prosparse::ort {

struct Status {
  ErrorCode code;
  std::string text;
};
struct TensorInfo {
  ElementType type;
  std::vector<int64_t> shape;
};
struct Value {
  TensorInfo info;
  void* data;
};
struct KernelInfo {
  std::vector<Value> inputs;  // that of x is never asked for
};

}  // namespace prosparse::ort

using namespace prosparse;
using namespace prosparse::ort;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

Api stand_in() {
  Api api{};
  api.CreateStatus = [](ErrorCode code, const char* text) {
    where = Where::kNowhere;  // onnxruntime's own memory is not what fails here
    return new Status{code, text};
  };
  api.ReleaseStatus = [](Status* status) { delete status; };
  api.KernelInfo_GetNodeName = [](const KernelInfo*, char* name, size_t* size) -> Status* {
    std::snprintf(name, *size, "layer 3");
    return nullptr;
  };
  api.KernelInfoGetAttribute_string = [](const KernelInfo*, const char*, char* value, size_t* size) -> Status* {
    std::snprintf(value, *size, "relu");
    return nullptr;
  };
  api.KernelInfoGetAttribute_float = [](const KernelInfo*, const char*, float* value) -> Status* {
    *value = 0.0f;
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const KernelInfo* info, size_t index, int* is_constant,
                                             const Value** value) -> Status* {
    *is_constant = 1;
    *value = &info->inputs[index];
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const Value* value, TensorInfo** info) -> Status* {
    *info = const_cast<TensorInfo*>(&value->info);
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](TensorInfo*) {};
  api.GetTensorElementType = [](const TensorInfo* info, ElementType* type) -> Status* {
    *type = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const TensorInfo* info, size_t* count) -> Status* {
    *count = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const TensorInfo* info, int64_t* shape, size_t count) -> Status* {
    std::copy_n(info->shape.begin(), count, shape);
    return nullptr;
  };
  api.GetTensorMutableData = [](Value* value, void** data) -> Status* {
    *data = value->data;
    return nullptr;
  };
  return api;
}

const Api api = stand_in();

const CustomOp& find(const std::string& name) {
  const CustomOp* const* op = custom_ops();
  while (op[0]->GetName(op[0]) != name) ++op;  // custom_ops() ends with a null: a wrong name crashes
  return **op;
}

// The status's text, one line; "" where the kernel was made.
std::string create(const CustomOp& op, const KernelInfo& info) {
  void* kernel = nullptr;
  Status* status = op.CreateKernelV2(&op, &api, &info, &kernel);
  where = Where::kNowhere;
  CHECK((status == nullptr) == (kernel != nullptr), "neither a kernel nor a status, or both");
  if (status == nullptr) {
    op.KernelDestroy(kernel);
    return "";
  }
  const std::string text = status->text;
  api.ReleaseStatus(status);
  ++cases;
  CHECK(text.find('\n') == std::string::npos, "more than one line: %s", text.c_str());
  return text;
}

// Every allocation that a node's creation makes fails once, alone or with all that follow.
void test_every_allocation(FfnFormat format, const char* name) {
  static const ElementType types[] = {kFloat, kFloat16, kBFloat16, kInt8, kUint8};
  std::mt19937 rng(1);
  const int64_t d_ff = 70, d_model = 50;
  Stored first(format.format, d_ff, d_model, rng), down(format.down, d_ff, d_model, rng);
  std::vector<float> biases(d_ff, 0.5f);
  KernelInfo info{{{{kFloat, {}}, nullptr}}};
  for (Stored* matrix : {&first, &first, &down}) {
    const Format own = matrix->matrix.format;
    const int64_t columns = static_cast<int64_t>(matrix->data.size()) / d_ff;
    info.inputs.push_back(
        {{types[static_cast<size_t>(own)], {d_ff, is_quantized(own) ? columns : d_model}}, matrix->data.data()});
    if (is_quantized(own)) info.inputs.push_back({{kFloat16, {d_ff, 2}}, matrix->scales.data()});
    info.inputs.push_back({{kFloat, {matrix == &down ? d_model : d_ff}}, biases.data()});
  }
  const CustomOp& op = find(name);
  CHECK(create(op, info).empty(), "%s: not made", name);
  for (const bool only_once : {true, false}) {
    size_t failures_seen = 0, named = 0;
    for (long after = 0;; ++after) {
      fail(Where::kEverywhere, after, only_once);
      const std::string text = create(op, info);
      if (failed == 0) break;
      if (text.empty()) continue;  // a thread less
      const bool is_named = text == std::string(name) + " node 'layer 3': weights: cannot allocate 1 MiB";
      CHECK(is_named || text == "com.prosparse: out of memory", "%s", text.c_str());
      ++failures_seen;
      named += is_named;
    }
    CHECK(failures_seen > 10 && (named > 3 || !only_once), "%s: %zu allocations failed, %zu of them while packing",
          name, failures_seen, named);
  }
  CHECK(create(op, info).empty(), "%s: not made after failures", name);
}

void test_too_large() {
  const int64_t size = int64_t{1} << 24;  // 2^50 bytes: more than any address space has
  float one = 1.0f;
  const KernelInfo info{{{{kFloat, {}}, nullptr}, {{kFloat, {size, size}}, &one}, {{kFloat, {size}}, &one}}};
  const std::string text = create(find("LinearF32"), info);
  CHECK(text == "LinearF32 node 'layer 3': weights: cannot allocate 1073741890 MiB", "%s", text.c_str());
}

// onnxruntime compares types with the operator's declaration before it makes a kernel; here nobody does.
void test_type() {
  float one = 1.0f;
  const KernelInfo info{{{{kFloat, {}}, nullptr}, {{kFloat, {1, 1}}, &one}, {{kFloat, {1}}, &one}}};
  const std::string text = create(find("LinearBF16"), info);
  CHECK(text == "LinearBF16 node 'layer 3': w: expected bfloat16, got float32", "%s", text.c_str());
}

}  // namespace

int main() {
  test_every_allocation({Format::kF32, Format::kF32}, "SparseGatedFFNF32");
  test_every_allocation({Format::kI8, Format::kI8}, "SparseGatedFFNI8");
  test_every_allocation({Format::kI4, Format::kI8}, "SparseGatedFFNI4I8");
  test_too_large();
  test_type();
  return report(cases);
}
