// A forced variant is the one that runs, or nothing runs.
#include <string>

#include "check.h"
#include "cpu_features.h"

using namespace prosparse;
using namespace prosparse::testing;

int main() {
  size_t cases = 0;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  ++cases;  // our reading of CPUID against gcc's
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  CHECK(has_avx2() == avx2, "AVX2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  CHECK(has_avx512() == avx512, "AVX-512");
  CHECK(has_vnni() == (has_avx512() && __builtin_cpu_supports("avx512vnni")), "VNNI");
  CHECK(has_bf16() == (has_vnni() && __builtin_cpu_supports("avx512bf16")), "BF16");
  CHECK(is_intel() == (__builtin_cpu_is("intel") != 0), "vendor");
#if defined(PROSPARSE_AMX)  // the operating system may deny what the processor has
  const bool amx = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  CHECK(!has_amx() || (has_vnni() && amx), "AMX");
#endif
#endif
  for (const Variant& variant : compiled_variants()) {
    const Choice choice = choose_variant(variant.kernels->isa);
    ++cases;
    if (variant.is_supported()) {
      CHECK(choice.kernels == variant.kernels, "forced %s", variant.kernels->isa);
    } else {
      CHECK(choice.kernels == nullptr && !choice.error.empty(), "%s cannot run but was chosen", variant.kernels->isa);
    }
  }
  const Choice unknown = choose_variant("sse9");
  CHECK(unknown.kernels == nullptr, "an unknown name chose %s", unknown.kernels->isa);
  CHECK(unknown.error == "PROSPARSE_ISA=sse9 cannot run here: this build has " + variant_names(false) +
                             "; this machine runs " + variant_names(true),
        "%s", unknown.error.c_str());
  const Choice best = choose_variant(nullptr);
  CHECK(best.kernels != nullptr && variant_names(true).rfind(best.kernels->isa, 0) == 0, "not the best one");
  CHECK(choose_variant("").kernels == best.kernels, "an empty PROSPARSE_ISA counts as unset");
  CHECK(std::strcmp(compiled_variants().back().kernels->isa, "scalar") == 0, "scalar is not last");
  return report(cases);
}
