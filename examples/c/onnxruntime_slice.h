/* The part of onnxruntime's C API that generate.c calls, declared here because package registries ship no headers.
 *
 * onnxruntime only appends to OrtApi, so a position never changes. Whoever has the real onnxruntime_c_api.h (in the
 * archives of onnxruntime's releases) includes that instead: the names are the same. */
#ifndef ONNXRUNTIME_SLICE_H_
#define ONNXRUNTIME_SLICE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
typedef wchar_t ORTCHAR_T; /* paths */
#else
typedef char ORTCHAR_T;
#endif
#define ORT_API_VERSION 18 /* onnxruntime 1.18: the oldest that the operator library runs on */

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef enum {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7
} ONNXTensorElementDataType;
enum { ORT_LOGGING_LEVEL_ERROR = 3, OrtDeviceAllocator = 0, OrtMemTypeDefault = 0 };

typedef struct OrtApi {
  void* gap0[2];
  const char* (*GetErrorMessage)(const OrtStatus*); /* 2 */
  OrtStatus* (*CreateEnv)(int severity, const char* name, OrtEnv**);
  void* gap4[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const ORTCHAR_T* path, const OrtSessionOptions*, OrtSession**); /* 7 */
  void* gap8[1];
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* inputs, const OrtValue* const* values,
                    size_t count, const char* const* outputs, size_t output_count, OrtValue** results); /* 9 */
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
  void* gap11[13];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int); /* 24 */
  void* gap25[5];
  OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t*); /* 30 */
  void* gap31[2];
  OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**); /* 33 */
  void* gap34[2];
  OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t, OrtAllocator*, char**); /* 36 */
  void* gap37[12];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                               size_t rank, ONNXTensorElementDataType, OrtValue**); /* 49 */
  void* gap50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**); /* 51 */
  void* gap52[3];
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**); /* 55 */
  void* gap56[4];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*); /* 60 */
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);                      /* 61 */
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
  void* gap63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**); /* 65 */
  void* gap66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int kind, OrtMemoryInfo**); /* 69 */
  void* gap70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator*, void*); /* 76 */
  void* gap77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**); /* 78 */
  void* gap79[13];
  void (*ReleaseEnv)(OrtEnv*);       /* 92 */
  void (*ReleaseStatus)(OrtStatus*); /* 93 */
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*); /* 96 */
  void* gap97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo*); /* 98 */
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  void (*ReleaseSessionOptions)(OrtSessionOptions*); /* 100 */
  void* gap101[127];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const ORTCHAR_T* library); /* 228 */
} OrtApi;

_Static_assert(offsetof(OrtApi, CreateSession) == 7 * sizeof(void*), "CreateSession");
_Static_assert(offsetof(OrtApi, SessionGetInputCount) == 30 * sizeof(void*), "SessionGetInputCount");
_Static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void*),
               "CreateTensorWithDataAsOrtValue");
_Static_assert(offsetof(OrtApi, GetTensorTypeAndShape) == 65 * sizeof(void*), "GetTensorTypeAndShape");
_Static_assert(offsetof(OrtApi, ReleaseEnv) == 92 * sizeof(void*), "ReleaseEnv");
_Static_assert(offsetof(OrtApi, RegisterCustomOpsLibrary_V2) == 228 * sizeof(void*), "RegisterCustomOpsLibrary_V2");

typedef struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} OrtApiBase;

#endif
