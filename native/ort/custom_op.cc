#include "custom_op.h"

#include <vector>

#include "status.h"
#include "weight_inputs.h"

namespace prosparse::ort {
namespace {

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

Operator make_operator(Kind kind) {
  Operator op{};
  op.kind = kind;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* o) { return self(o).name.c_str(); };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* o, size_t i) { return self(o).inputs[i]; };
  op.GetInputTypeCount = [](const CustomOp* o) { return self(o).inputs.size(); };
  op.GetOutputType = [](const CustomOp* o, size_t i) { return self(o).outputs[i]; };
  op.GetOutputTypeCount = [](const CustomOp* o) { return self(o).outputs.size(); };
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

Operator make_operator(Kind kind, Format format, Format down, bool rounded) {
  static const char* const kinds[] = {"SparseGatedFFN", "SparseFFN", "Linear"};
  Operator op = make_operator(kind);
  op.name = std::string(kinds[static_cast<size_t>(kind)]) + spec(format).name;
  if (down != format) op.name += spec(down).name;
  if (rounded) op.name += "A8";
  op.format = format;
  op.down = down;
  op.rounded = rounded;
  for (size_t i = 0; i < input_count(op); ++i) op.inputs.push_back(input_type(op, i));
  op.outputs = {kFloat};
  return op;
}

Operator make_attention_operator(Kind kind, Format cache) {
  Operator op = make_operator(kind);
  op.name = std::string(kind == Kind::kRotaryAttention ? "Rotary" : "") + "CachedAttention" + spec(cache).name;
  op.format = cache;
  const ElementType type = cache == Format::kF32 ? kFloat : kInt8;
  op.inputs = {kFloat, type, type, kInt32, kInt32};
  if (kind == Kind::kRotaryAttention) op.inputs.insert(op.inputs.end(), {kFloat, kFloat});
  op.outputs = {kFloat, type, type};
  return op;
}

}  // namespace

const CustomOp* const* custom_ops() {
  static const std::vector<Operator> operators = [] {
    std::vector<Operator> all;
    for (const FormatSpec& f : kFormatSpecs) {
      for (const Kind kind : {Kind::kGated, Kind::kUngated, Kind::kLinear}) {
        all.push_back(make_operator(kind, f.format, f.format, false));
        if (is_quantized(f.format)) all.push_back(make_operator(kind, f.format, f.format, true));
      }
    }
    for (const MixedFormat& f : kMixedFormats) {
      for (const Kind kind : {Kind::kGated, Kind::kUngated}) {
        for (const bool rounded : {false, true}) all.push_back(make_operator(kind, f.gate_up, f.down, rounded));
      }
    }
    for (const Kind kind : {Kind::kAttention, Kind::kRotaryAttention}) {
      for (const Format cache : {Format::kI8, Format::kF32}) all.push_back(make_attention_operator(kind, cache));
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
