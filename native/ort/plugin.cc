// A plugin execution provider that brings the operators and runs no node itself: for applications that let onnxruntime
// choose providers (1.24 and newer). The operators belong to onnxruntime's own CPU provider, as with RegisterCustomOps.
#include <algorithm>

#include "domain.h"
#include "ep_abi.h"
#include "export.h"
#include "status.h"

namespace prosparse::ort {
namespace {

const char* const kName = "ProSparse";
const Api* api = nullptr;
const EpOrtApi* devices = nullptr;

// Kept until the process ends: sessions use it, and onnxruntime may ask again.
CustomOpDomain* shared_domain() {
  static CustomOpDomain* const domain = make_domain(*api);
  return domain;
}

// The processor, once: the operators of two devices would be one domain twice.
Status* supported_devices(EpFactory* self, const HardwareDevice* const* all, size_t count, EpDevice** found,
                          size_t most, size_t* written) {
  const auto is_cpu = [](const HardwareDevice* device) { return devices->HardwareDevice_Type(device) == kCpu; };
  const HardwareDevice* const* const cpu = std::find_if(all, all + count, is_cpu);
  *written = cpu != all + count && most > 0 ? 1 : 0;
  return *written == 0 ? nullptr : devices->GetEpApi()->CreateEpDevice(self, *cpu, nullptr, nullptr, found);
}

Status* create_ep(EpFactory*, const HardwareDevice* const*, const KeyValuePairs* const*, size_t,
                  const OrtSessionOptions*, const OrtLogger*, Ep** created) {
  return guarded(*api, [&] {
    Ep* ep = new Ep{};
    ep->version = kEpApiVersion;
    ep->GetName = [](const Ep*) { return kName; };
    ep->GetCapability = [](Ep*, const void*, void*) -> Status* { return nullptr; };
    *created = ep;
  });
}

EpFactory make_factory() {
  EpFactory factory{};
  factory.version = kEpApiVersion;
  factory.GetName = [](const EpFactory*) { return kName; };
  factory.GetVendor = [](const EpFactory*) { return "prosparse-export"; };
  factory.GetSupportedDevices = supported_devices;
  factory.CreateEp = create_ep;
  factory.ReleaseEp = [](EpFactory*, Ep* ep) { delete ep; };
  factory.GetVendorId = [](const EpFactory*) -> uint32_t { return 0; };
  factory.GetVersion = [](const EpFactory*) { return PROSPARSE_VERSION; };
  factory.ValidateCompiledModelCompatibilityInfo = [](EpFactory*, const HardwareDevice* const*, size_t, const char*,
                                                      int* not_applicable) -> Status* {
    *not_applicable = 0;
    return nullptr;
  };
  factory.CreateAllocator = [](EpFactory*, const void*, const KeyValuePairs*, void** value) -> Status* {
    *value = nullptr;  // onnxruntime's own
    return nullptr;
  };
  factory.ReleaseAllocator = [](EpFactory*, void*) {};
  factory.CreateDataTransfer = [](EpFactory*, void** value) -> Status* {
    *value = nullptr;
    return nullptr;
  };
  factory.IsStreamAware = [](const EpFactory*) { return false; };
  factory.CreateSyncStreamForDevice = [](EpFactory*, const void*, const KeyValuePairs*, void** value) -> Status* {
    *value = nullptr;
    return nullptr;
  };
  factory.GetNumCustomOpDomains = [](EpFactory*, size_t* count) -> Status* {
    *count = 1;
    return nullptr;
  };
  factory.GetCustomOpDomains = [](EpFactory*, CustomOpDomain** domains, size_t) {
    return guarded(*api, [&] { domains[0] = shared_domain(); });
  };
  return factory;
}

}  // namespace
}  // namespace prosparse::ort

// Called by onnxruntime; see RegisterExecutionProviderLibrary there.
PROSPARSE_EXPORT prosparse::ort::Status* CreateEpFactories(const char*, const OrtApiBase* opaque, const OrtLogger*,
                                                           prosparse::ort::EpFactory** factories, size_t most,
                                                           size_t* written) {
  using namespace prosparse::ort;
  const ApiBase* base = reinterpret_cast<const ApiBase*>(opaque);
  const Api* found = base->GetApi(kEpApiVersion);
  if (found == nullptr || most < 1) {
    return base->GetApi(1)->CreateStatus(kNotImplemented, "the ProSparse provider needs onnxruntime 1.24 or newer");
  }
  api = found;
  devices = reinterpret_cast<const EpOrtApi*>(found);
  static EpFactory factory = make_factory();
  factories[0] = &factory;
  *written = 1;
  return nullptr;
}

PROSPARSE_EXPORT prosparse::ort::Status* ReleaseEpFactory(prosparse::ort::EpFactory*) { return nullptr; }
