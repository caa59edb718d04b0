#include "custom_op.h"

#include <vector>

#include "status.h"
#include "weight_inputs.h"

namespace prosparse::ort {
namespace {

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

Operator make_operator(Kind kind, Format format, Format down) {
  static const char* const kinds[] = {"SparseGatedFFN", "SparseFFN", "Linear"};
  Operator op{};
  op.name = std::string(kinds[static_cast<size_t>(kind)]) + spec(format).name;
  if (down != format) op.name += spec(down).name;
  op.kind = kind;
  op.format = format;
  op.down = down;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* o) { return self(o).name.c_str(); };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* o, size_t i) { return input_type(self(o), i); };
  op.GetInputTypeCount = [](const CustomOp* o) { return input_count(self(o)); };
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
    return guarded(*api, [&] { *kernel = make_kernel(self(o), *api, info).release(); });
  };
  op.KernelComputeV2 = [](void* kernel, KernelContext* context) {
    Kernel& node = *static_cast<Kernel*>(kernel);
    return guarded(node.api, [&] { node.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

const CustomOp* const* custom_ops() {
  static const std::vector<Operator> operators = [] {
    std::vector<Operator> all;
    for (const FormatSpec& f : kFormatSpecs) {
      for (const Kind kind : {Kind::kGated, Kind::kUngated, Kind::kLinear}) {
        all.push_back(make_operator(kind, f.format, f.format));
      }
    }
    for (const MixedFormat& f : kMixedFormats) {
      for (const Kind kind : {Kind::kGated, Kind::kUngated}) all.push_back(make_operator(kind, f.gate_up, f.down));
    }
    return all;
  }();
  static const std::vector<const CustomOp*> pointers = [] {
    std::vector<const CustomOp*> all;
    for (const Operator& op : operators) all.push_back(&op);
    all.push_back(nullptr);
    return all;
  }();
  return pointers.data();
}

}  // namespace prosparse::ort
