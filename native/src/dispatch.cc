#include "dispatch.h"

#include <cstring>

#if defined(PROSPARSE_AMX)
#include <cpuid.h>
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
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The builtin reads XCR0 too: registers that the operating system does not save count as absent.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#if defined(PROSPARSE_AMX)
// Linux gives tile registers to processes that ask for them (Documentation/arch/x86/xstate.rst). The permission is
// permanent and rules out small alternate signal stacks, so only processes that use AMX ask.
constexpr long kSupported = 0x1021, kRequest = 0x1023, kTileData = 18;
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  if (!has_vnni() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTiles) == 0 || (d & kBfloat16) == 0)
    return false;
  uint64_t features = 0;
  return syscall(SYS_arch_prctl, kSupported, &features) == 0 && (features >> kTileData & 1) != 0;
}
bool request_tiles() { return syscall(SYS_arch_prctl, kRequest, kTileData) == 0; }
#endif
#elif defined(__aarch64__) && defined(__linux__)
bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has_dotprod() {
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found != 0;
}
#elif defined(__aarch64__)
bool has_dotprod() { return false; }
#endif

}  // namespace

const std::vector<Variant>& compiled_variants() {
  static const std::vector<Variant> variants = {
#if defined(__x86_64__)
#if defined(PROSPARSE_AMX)
      {&kAmxKernels, has_amx, request_tiles},
#endif
      {&kAvx512VnniKernels, has_vnni},
      {&kAvx512Kernels, has_avx512},
      {&kAvx2Kernels, has_avx2},
#elif defined(__aarch64__)
      {&kNeonDotKernels, has_dotprod},
      {&kNeonKernels, always},
#endif
      {&kScalarKernels, always},
  };
  return variants;
}

size_t prefetch_distance(Format format) {
#if defined(__x86_64__)
#ifdef PROSPARSE_PREFETCH_DISTANCE
  return PROSPARSE_PREFETCH_DISTANCE;
#endif
  // Measured by benchmarks/tuning.py on a Xeon with AMX. On Zen 4 integers took up to twice as long.
  if (__builtin_cpu_is("intel")) return 3072;
  if (has_avx512()) return 0;
  // Zen 3: four times the bytes of 64 columns in integers. With so much arithmetic between their lines, the processor
  // does not look far enough ahead by itself; f32 does not gain.
  return is_quantized(format) ? 4 * (64 + 128 * element_bits(format)) : element_bits(format) == 32 ? 0 : 1024;
#else
  (void)format;
  return 0;  // not measured
#endif
}

std::string variant_names(bool supported_only, const char* quote) {
  std::string names;
  for (const Variant& variant : compiled_variants()) {
    if (supported_only && !variant.is_supported()) continue;
    if (!names.empty()) names += ", ";
    names += std::string(quote) + variant.kernels->isa + quote;
  }
  return names;
}

Choice choose_variant(const char* forced) {
  const bool is_forced = forced != nullptr && *forced != '\0';
  for (const Variant& variant : compiled_variants()) {
    if (is_forced && std::strcmp(forced, variant.kernels->isa) != 0) continue;
    if (variant.is_supported() && (variant.request == nullptr || variant.request())) return {variant.kernels, ""};
  }
  return {nullptr, std::string("PROSPARSE_ISA=") + forced + " cannot run here: this build has " + variant_names(false) +
                       "; this machine runs " + variant_names(true)};
}

}  // namespace prosparse
