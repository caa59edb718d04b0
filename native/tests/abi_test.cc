// ort_abi.h against the real header: every position, size and number that we rely on. It is the
// compiler that checks; running it only says so.
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <type_traits>

// The real header declares these two at global scope, with the same names.
#define OrtSessionOptions PROSPARSE_SESSION_OPTIONS
#define OrtApiBase PROSPARSE_API_BASE
#define OrtLogger PROSPARSE_LOGGER
#include "ep_abi.h"
#undef OrtSessionOptions
#undef OrtApiBase
#undef OrtLogger

namespace ours = prosparse::ort;

template <typename F>
struct Arity;
template <typename R, typename... A>
struct Arity<R (*)(A...)> {
  static constexpr size_t count = sizeof...(A);
  static constexpr size_t bytes = (sizeof(A) + ... + 0);
  static constexpr bool returns_pointer = std::is_pointer_v<R>;
};
template <typename R, typename... A>
struct Arity<R (*)(A...) noexcept> : Arity<R (*)(A...)> {};

template <typename Ours, typename Theirs>
constexpr bool same_shape() {
  return Arity<Ours>::count == Arity<Theirs>::count && Arity<Ours>::bytes == Arity<Theirs>::bytes &&
         Arity<Ours>::returns_pointer == Arity<Theirs>::returns_pointer;
}

#define SAME(Struct, OrtStruct, member)                                                           \
  static_assert(offsetof(ours::Struct, member) == offsetof(OrtStruct, member), #member " moved"); \
  static_assert(same_shape<decltype(ours::Struct::member), decltype(OrtStruct::member)>(),        \
                #member " has another signature")

SAME(Api, OrtApi, CreateStatus);
SAME(Api, OrtApi, CreateCustomOpDomain);
SAME(Api, OrtApi, CustomOpDomain_Add);
SAME(Api, OrtApi, AddCustomOpDomain);
SAME(Api, OrtApi, GetTensorMutableData);
SAME(Api, OrtApi, GetTensorElementType);
SAME(Api, OrtApi, GetDimensionsCount);
SAME(Api, OrtApi, GetDimensions);
SAME(Api, OrtApi, GetTensorTypeAndShape);
SAME(Api, OrtApi, KernelInfoGetAttribute_float);
SAME(Api, OrtApi, KernelInfoGetAttribute_int64);
SAME(Api, OrtApi, KernelInfoGetAttribute_string);
SAME(Api, OrtApi, KernelContext_GetInput);
SAME(Api, OrtApi, KernelContext_GetOutput);
SAME(Api, OrtApi, ReleaseStatus);
SAME(Api, OrtApi, ReleaseTensorTypeAndShapeInfo);
SAME(Api, OrtApi, ReleaseCustomOpDomain);
SAME(Api, OrtApi, KernelInfo_GetNodeName);
SAME(Api, OrtApi, KernelInfoGetConstantInput_tensor);
SAME(Api, OrtApi, KernelContext_ParallelFor);
SAME(ApiBase, OrtApiBase, GetApi);
SAME(ApiBase, OrtApiBase, GetVersionString);
SAME(CustomOp, OrtCustomOp, CreateKernel);
SAME(CustomOp, OrtCustomOp, GetName);
SAME(CustomOp, OrtCustomOp, GetExecutionProviderType);
SAME(CustomOp, OrtCustomOp, GetInputType);
SAME(CustomOp, OrtCustomOp, GetInputTypeCount);
SAME(CustomOp, OrtCustomOp, GetOutputType);
SAME(CustomOp, OrtCustomOp, GetOutputTypeCount);
SAME(CustomOp, OrtCustomOp, KernelCompute);
SAME(CustomOp, OrtCustomOp, KernelDestroy);
SAME(CustomOp, OrtCustomOp, GetInputCharacteristic);
SAME(CustomOp, OrtCustomOp, GetOutputCharacteristic);
SAME(CustomOp, OrtCustomOp, GetInputMemoryType);
SAME(CustomOp, OrtCustomOp, GetVariadicInputMinArity);
SAME(CustomOp, OrtCustomOp, GetVariadicInputHomogeneity);
SAME(CustomOp, OrtCustomOp, GetVariadicOutputMinArity);
SAME(CustomOp, OrtCustomOp, GetVariadicOutputHomogeneity);
SAME(CustomOp, OrtCustomOp, CreateKernelV2);
SAME(CustomOp, OrtCustomOp, KernelComputeV2);
SAME(CustomOp, OrtCustomOp, InferOutputShapeFn);
SAME(CustomOp, OrtCustomOp, GetStartVersion);
SAME(CustomOp, OrtCustomOp, GetEndVersion);
SAME(CustomOp, OrtCustomOp, GetMayInplace);
SAME(CustomOp, OrtCustomOp, ReleaseMayInplace);
SAME(CustomOp, OrtCustomOp, GetAliasMap);
SAME(CustomOp, OrtCustomOp, ReleaseAliasMap);
static_assert(int(ours::kFail) == int(ORT_FAIL) && int(ours::kInvalidArgument) == int(ORT_INVALID_ARGUMENT));
static_assert(int(ours::kNotImplemented) == int(ORT_NOT_IMPLEMENTED));
static_assert(int(ours::kFloat) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
static_assert(int(ours::kInt8) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) &&
              int(ours::kInt32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32));
static_assert(int(ours::kRequired) == int(INPUT_OUTPUT_REQUIRED) &&
              int(ours::kDefaultMemory) == int(OrtMemTypeDefault));
static_assert(ours::kApiVersion <= ORT_API_VERSION);
#if ORT_API_VERSION >= 24  // plugin providers
SAME(EpOrtApi, OrtApi, HardwareDevice_Type);
SAME(EpOrtApi, OrtApi, GetEpApi);
SAME(EpApi, OrtEpApi, CreateEpDevice);
SAME(Ep, OrtEp, GetName);
SAME(Ep, OrtEp, GetCapability);
static_assert(sizeof(ours::Ep) == offsetof(OrtEp, IsConcurrentRunSupported) + sizeof(void*));
SAME(EpFactory, OrtEpFactory, GetName);
SAME(EpFactory, OrtEpFactory, GetVendor);
SAME(EpFactory, OrtEpFactory, GetSupportedDevices);
SAME(EpFactory, OrtEpFactory, CreateEp);
SAME(EpFactory, OrtEpFactory, ReleaseEp);
SAME(EpFactory, OrtEpFactory, GetVendorId);
SAME(EpFactory, OrtEpFactory, GetVersion);
SAME(EpFactory, OrtEpFactory, ValidateCompiledModelCompatibilityInfo);
SAME(EpFactory, OrtEpFactory, CreateAllocator);
SAME(EpFactory, OrtEpFactory, ReleaseAllocator);
SAME(EpFactory, OrtEpFactory, CreateDataTransfer);
SAME(EpFactory, OrtEpFactory, IsStreamAware);
SAME(EpFactory, OrtEpFactory, CreateSyncStreamForDevice);
SAME(EpFactory, OrtEpFactory, GetNumCustomOpDomains);
SAME(EpFactory, OrtEpFactory, GetCustomOpDomains);
static_assert(int(ours::kCpu) == int(OrtHardwareDeviceType_CPU) &&
              int(OrtCompiledModelCompatibility_EP_NOT_APPLICABLE) == 0);
#endif

int main() {
  std::printf("ort_abi.h agrees with the header of API version %d\n", ORT_API_VERSION);
  return 0;
}
