// The part of onnxruntime's C interface that this library uses, declared by us.
//
// Package registries do not ship onnxruntime's headers; this way, a build needs only a compiler.
// onnxruntime only ever appends to its tables (it asserts the size of each version's), so a position
// in OrtApi never changes; version 18 (onnxruntime 1.18) has all that is used here, which is why one
// binary runs on every release since. tests/abi_test.cc compares this file with the real header.
//
// Positions and signatures: onnxruntime_c_api.h, struct OrtApi and struct OrtCustomOp.
#ifndef PROSPARSE_ORT_ABI_H_
#define PROSPARSE_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define PROSPARSE_ORT_CALL __stdcall
#else
#define PROSPARSE_ORT_CALL
#endif

extern "C" {
struct OrtSessionOptions;
struct OrtApiBase;
}

namespace prosparse::ort {

constexpr uint32_t kApiVersion = 18;

struct Status;
struct CustomOpDomain;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;

enum ErrorCode { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };
enum ElementType { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic { kRequired = 0 };
enum MemoryType { kDefaultMemory = 0 };

struct CustomOp;

struct Api {
  Status*(PROSPARSE_ORT_CALL* CreateStatus)(ErrorCode, const char*);  // 0
  void* gap1[25];
  Status*(PROSPARSE_ORT_CALL* CreateCustomOpDomain)(const char*, CustomOpDomain**);  // 26
  Status*(PROSPARSE_ORT_CALL* CustomOpDomain_Add)(CustomOpDomain*, const CustomOp*);
  Status*(PROSPARSE_ORT_CALL* AddCustomOpDomain)(OrtSessionOptions*, CustomOpDomain*);
  void* gap29[22];
  Status*(PROSPARSE_ORT_CALL* GetTensorMutableData)(Value*, void**);  // 51
  void* gap52[8];
  Status*(PROSPARSE_ORT_CALL* GetTensorElementType)(const TensorInfo*, ElementType*);  // 60
  Status*(PROSPARSE_ORT_CALL* GetDimensionsCount)(const TensorInfo*, size_t*);
  Status*(PROSPARSE_ORT_CALL* GetDimensions)(const TensorInfo*, int64_t*, size_t);
  void* gap63[2];
  Status*(PROSPARSE_ORT_CALL* GetTensorTypeAndShape)(const Value*, TensorInfo**);  // 65
  void* gap66[19];
  Status*(PROSPARSE_ORT_CALL* KernelInfoGetAttribute_float)(const KernelInfo*, const char*, float*);           // 85
  Status*(PROSPARSE_ORT_CALL* KernelInfoGetAttribute_int64)(const KernelInfo*, const char*, int64_t*);         // 86
  Status*(PROSPARSE_ORT_CALL* KernelInfoGetAttribute_string)(const KernelInfo*, const char*, char*, size_t*);  // 87
  void* gap88[2];
  Status*(PROSPARSE_ORT_CALL* KernelContext_GetInput)(const KernelContext*, size_t, const Value**);  // 90
  Status*(PROSPARSE_ORT_CALL* KernelContext_GetOutput)(KernelContext*, size_t, const int64_t*, size_t, Value**);
  void* gap92[1];
  void(PROSPARSE_ORT_CALL* ReleaseStatus)(Status*);  // 93
  void* gap94[5];
  void(PROSPARSE_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(TensorInfo*);  // 99
  void* gap100[1];
  void(PROSPARSE_ORT_CALL* ReleaseCustomOpDomain)(CustomOpDomain*);  // 101
  void* gap102[142];
  Status*(PROSPARSE_ORT_CALL* KernelInfo_GetNodeName)(const KernelInfo*, char*, size_t*);  // 244
  void* gap245[4];
  Status*(PROSPARSE_ORT_CALL* KernelInfoGetConstantInput_tensor)(const KernelInfo*, size_t, int*,
                                                                 const Value**);  // 249
  void* gap250[24];
  Status*(PROSPARSE_ORT_CALL* KernelContext_ParallelFor)(const KernelContext*, void (*)(void*, size_t), size_t, size_t,
                                                         void*);  // 274
};

constexpr size_t slot(size_t offset) { return offset / sizeof(void*); }
static_assert(slot(offsetof(Api, CreateCustomOpDomain)) == 26);
static_assert(slot(offsetof(Api, GetTensorMutableData)) == 51);
static_assert(slot(offsetof(Api, GetTensorElementType)) == 60);
static_assert(slot(offsetof(Api, GetTensorTypeAndShape)) == 65);
static_assert(slot(offsetof(Api, KernelInfoGetAttribute_float)) == 85);
static_assert(slot(offsetof(Api, KernelInfoGetAttribute_string)) == 87);
static_assert(slot(offsetof(Api, KernelContext_GetInput)) == 90);
static_assert(slot(offsetof(Api, ReleaseStatus)) == 93);
static_assert(slot(offsetof(Api, ReleaseTensorTypeAndShapeInfo)) == 99);
static_assert(slot(offsetof(Api, ReleaseCustomOpDomain)) == 101);
static_assert(slot(offsetof(Api, KernelInfo_GetNodeName)) == 244);
static_assert(slot(offsetof(Api, KernelInfoGetConstantInput_tensor)) == 249);
static_assert(slot(offsetof(Api, KernelContext_ParallelFor)) == 274);

struct ApiBase {
  const Api*(PROSPARSE_ORT_CALL* GetApi)(uint32_t);
  const char*(PROSPARSE_ORT_CALL* GetVersionString)();
};

// onnxruntime reads the members of versions up to `version` and no further.
struct CustomOp {
  uint32_t version;
  void*(PROSPARSE_ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(PROSPARSE_ORT_CALL* GetName)(const CustomOp*);
  const char*(PROSPARSE_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(PROSPARSE_ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(PROSPARSE_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(PROSPARSE_ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(PROSPARSE_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(PROSPARSE_ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(PROSPARSE_ORT_CALL* KernelDestroy)(void*);
  Characteristic(PROSPARSE_ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic(PROSPARSE_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType(PROSPARSE_ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(PROSPARSE_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(PROSPARSE_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(PROSPARSE_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(PROSPARSE_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(PROSPARSE_ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status*(PROSPARSE_ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(PROSPARSE_ORT_CALL* InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int(PROSPARSE_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(PROSPARSE_ORT_CALL* GetEndVersion)(const CustomOp*);
  size_t(PROSPARSE_ORT_CALL* GetMayInplace)(int**, int**);
  void(PROSPARSE_ORT_CALL* ReleaseMayInplace)(int*, int*);
  size_t(PROSPARSE_ORT_CALL* GetAliasMap)(int**, int**);
  void(PROSPARSE_ORT_CALL* ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*));

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_ABI_H_
