#include "cpu_features.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif defined(PROSPARSE_AMX) && !defined(PROSPARSE_EMULATED_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace prosparse {

#if defined(__x86_64__)

// CPUID by hand: __builtin_cpu_supports needs data of the compiler's runtime library, which zig's leaves empty.
namespace {

struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit CpuId(unsigned leaf, unsigned part = 0) {
    __get_cpuid_count(leaf, part, &a, &b, &c, &d);  // all 0 if there is no such leaf
  }
};

bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

// The registers that the operating system saves (XCR0; Intel's manual, volume 1, section 13.3).
unsigned saved_registers() {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!all(CpuId(1).c, kOsxsave)) return 0;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr unsigned kYmm = 0x6, kZmm = 0xe6;
#if defined(PROSPARSE_AMX) && !defined(PROSPARSE_EMULATED_TILES)
constexpr unsigned kTileRegisters = 0x60000, kTileData = 18;
#endif

}  // namespace

bool has_avx2() {
  constexpr unsigned kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29, kAvx2 = 1u << 5;
  return all(saved_registers(), kYmm) && all(CpuId(1).c, kFma | kAvx | kF16c) && all(CpuId(7).b, kAvx2);
}

bool has_avx_vnni() {
#if defined(PROSPARSE_AVXVNNI_AS_AVX512)
  return has_vnni();
#else
  constexpr unsigned kAvxVnni = 1u << 4;
  return has_avx2() && CpuId(7).a >= 1 && all(CpuId(7, 1).a, kAvxVnni);
#endif
}

bool has_avx512() {
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
#if defined(__APPLE__)
  const bool saved = true;  // macOS turns the registers on when a thread first uses them
#else
  const bool saved = all(saved_registers(), kZmm);
#endif
  return saved && has_avx2() && all(CpuId(7).b, kF | kDq | kBw | kVl);
}

bool has_vnni() {
  constexpr unsigned kVnni = 1u << 11;
  return has_avx512() && all(CpuId(7).c, kVnni);
}

bool has_bf16() {
  constexpr unsigned kBf16 = 1u << 5;
  return has_vnni() && CpuId(7).a >= 1 && all(CpuId(7, 1).a, kBf16);
}

static bool is_made_by(const char* wanted) {
  const CpuId vendor(0);
  char name[13] = {};
  std::memcpy(name, &vendor.b, 4);
  std::memcpy(name + 4, &vendor.d, 4);
  std::memcpy(name + 8, &vendor.c, 4);
  return std::strcmp(name, wanted) == 0;
}

bool is_intel() { return is_made_by("GenuineIntel"); }

// Family and model, as 0x1731 for family 17h, model 31h; 0 if not AMD's.
static unsigned amd_model() {
  const unsigned version = CpuId(1).a, family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
  const unsigned model = (version >> 12 & 0xf0) + (version >> 4 & 0xf);
  return is_made_by("AuthenticAMD") ? family << 8 | model : 0;
}

bool is_zen2() { return amd_model() >= 0x1730 && amd_model() < 0x1800; }  // below: Zen and Zen+
bool is_zen5() { return amd_model() >= 0x1a00; }

#if defined(PROSPARSE_AMX) && defined(PROSPARSE_EMULATED_TILES)
bool request_amx() { return true; }
bool has_amx() { return has_vnni(); }
#elif defined(PROSPARSE_AMX)
#if defined(_WIN32)
namespace {
// Windows 11 and Server 2022. Looked up when needed, so that the library loads on older systems.
using EnableFeatures = BOOL(WINAPI*)(DWORD64);
EnableFeatures enable_features() {
  const FARPROC found = GetProcAddress(GetModuleHandleA("kernel32.dll"), "EnableProcessOptionalXStateFeatures");
  return reinterpret_cast<EnableFeatures>(reinterpret_cast<void*>(found));
}
}  // namespace

bool request_amx() {
  const EnableFeatures enable = enable_features();
  return enable != nullptr && enable(DWORD64{1} << kTileData) != 0;
}
static bool grants_tiles() { return enable_features() != nullptr; }
#else
// Linux gives tile registers to processes that ask for them (Documentation/arch/x86/xstate.rst). The permission is
// permanent and rules out small alternate signal stacks, so only processes that use AMX ask.
bool request_amx() {
  constexpr long kRequest = 0x1023;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
static bool grants_tiles() {
  constexpr long kSupported = 0x1021;
  uint64_t features = 0;
  return syscall(SYS_arch_prctl, kSupported, &features) == 0 && (features >> kTileData & 1) != 0;
}
#endif

bool has_amx() {
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  return has_vnni() && all(saved_registers(), kTileRegisters) && all(CpuId(7).d, kTiles | kBfloat16) && grants_tiles();
}
#endif

#elif defined(__aarch64__)

#if defined(__APPLE__)
static bool has_feature(const char* name) {
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found != 0;
}
#endif

bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_DotProd");
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kDotProduct) != 0;
#else
  return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM, which older headers lack
  return has_dotprod() && (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__APPLE__)
  return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM");
#elif defined(_WIN32)
  constexpr DWORD kI8mm = 66;  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  return has_dotprod() && IsProcessorFeaturePresent(kI8mm) != 0;
#else
  return false;
#endif
}

#endif

}  // namespace prosparse
