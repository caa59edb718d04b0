// The part of onnxruntime's interface for plugin execution providers that this library uses, declared by us.
//
// As in ort_abi.h, onnxruntime only appends, and reads no further than the version that a table states. Version 24
// (onnxruntime 1.24) is the first whose factories bring operators. tests/contract/test_plugin.py runs it.
//
// Positions and signatures: onnxruntime_ep_c_api.h, struct OrtEpFactory, OrtEp and OrtEpApi.
#ifndef PROSPARSE_EP_ABI_H_
#define PROSPARSE_EP_ABI_H_

#include "ort_abi.h"

extern "C" {
struct OrtLogger;
}

namespace prosparse::ort {

constexpr uint32_t kEpApiVersion = 24;

struct EpDevice;
struct EpFactory;
struct HardwareDevice;
struct KeyValuePairs;

enum HardwareDeviceType { kCpu = 0 };

struct EpApi {
  Status*(PROSPARSE_ORT_CALL* CreateEpDevice)(EpFactory*, const HardwareDevice*, const KeyValuePairs*,
                                              const KeyValuePairs*, EpDevice**);  // 0
};

// OrtApi from the version on that has providers.
struct EpOrtApi {
  void* gap0[307];
  HardwareDeviceType(PROSPARSE_ORT_CALL* HardwareDevice_Type)(const HardwareDevice*);  // 307
  void* gap308[9];
  const EpApi*(PROSPARSE_ORT_CALL* GetEpApi)();  // 317
};
static_assert(slot(offsetof(EpOrtApi, HardwareDevice_Type)) == 307);
static_assert(slot(offsetof(EpOrtApi, GetEpApi)) == 317);

// Members that are null are optional for a provider that compiles no nodes.
struct Ep {
  uint32_t version;
  const char*(PROSPARSE_ORT_CALL* GetName)(const Ep*);
  Status*(PROSPARSE_ORT_CALL* GetCapability)(Ep*, const void* graph, void* support);
  void* Compile;
  void* ReleaseNodeComputeInfos;
  void* gap5[10];  // the rest of version 24
};
static_assert(sizeof(Ep) == 15 * sizeof(void*));

struct EpFactory {
  uint32_t version;
  const char*(PROSPARSE_ORT_CALL* GetName)(const EpFactory*);
  const char*(PROSPARSE_ORT_CALL* GetVendor)(const EpFactory*);
  Status*(PROSPARSE_ORT_CALL* GetSupportedDevices)(EpFactory*, const HardwareDevice* const*, size_t, EpDevice**, size_t,
                                                   size_t*);
  Status*(PROSPARSE_ORT_CALL* CreateEp)(EpFactory*, const HardwareDevice* const*, const KeyValuePairs* const*, size_t,
                                        const OrtSessionOptions*, const OrtLogger*, Ep**);
  void(PROSPARSE_ORT_CALL* ReleaseEp)(EpFactory*, Ep*);
  uint32_t(PROSPARSE_ORT_CALL* GetVendorId)(const EpFactory*);
  const char*(PROSPARSE_ORT_CALL* GetVersion)(const EpFactory*);
  Status*(PROSPARSE_ORT_CALL* ValidateCompiledModelCompatibilityInfo)(EpFactory*, const HardwareDevice* const*, size_t,
                                                                      const char*, int*);
  Status*(PROSPARSE_ORT_CALL* CreateAllocator)(EpFactory*, const void*, const KeyValuePairs*, void**);
  void(PROSPARSE_ORT_CALL* ReleaseAllocator)(EpFactory*, void*);
  Status*(PROSPARSE_ORT_CALL* CreateDataTransfer)(EpFactory*, void**);
  bool(PROSPARSE_ORT_CALL* IsStreamAware)(const EpFactory*);
  Status*(PROSPARSE_ORT_CALL* CreateSyncStreamForDevice)(EpFactory*, const void*, const KeyValuePairs*, void**);
  void* gap14[2];
  Status*(PROSPARSE_ORT_CALL* GetNumCustomOpDomains)(EpFactory*, size_t*);  // 16
  Status*(PROSPARSE_ORT_CALL* GetCustomOpDomains)(EpFactory*, CustomOpDomain**, size_t);
};
static_assert(slot(offsetof(EpFactory, GetNumCustomOpDomains)) == 16);
static_assert(sizeof(EpFactory) == 18 * sizeof(void*));

}  // namespace prosparse::ort

#endif  // PROSPARSE_EP_ABI_H_
