#include "dispatch.h"

#include <cstring>

#include "cpu_features.h"

namespace prosparse {
namespace {

bool always() { return true; }

}  // namespace

const std::vector<Variant>& compiled_variants() {
  static const std::vector<Variant> variants = {
#if defined(__x86_64__)
#if defined(PROSPARSE_AMX)
      {&kAmxKernels, has_amx, request_amx},
#endif
      {&kAvx512Bf16Kernels, has_bf16},
      {&avx512_vnni_kernels(), has_vnni},
      {&kAvx512Kernels, has_avx512},
#if defined(PROSPARSE_AVXVNNI)
      {&avx_vnni_kernels(), has_avx_vnni},
#endif
      {&kAvx2Kernels, has_avx2},
#elif defined(__aarch64__)
      {&neon_i8mm_kernels(), has_i8mm},
      {&neon_dot_kernels(), has_dotprod},
      {&kNeonKernels, always},
#endif
      {&kScalarKernels, always},
  };
  return variants;
}

size_t prefetch_distance(Format format, bool rounded) {
#if defined(__x86_64__)
#ifdef PROSPARSE_PREFETCH_DISTANCE
  return PROSPARSE_PREFETCH_DISTANCE;
#endif
  // Measured by benchmarks/tuning.py on a Xeon with AMX.
  if (is_intel()) return 3072;
  // On Zen 4 integers took up to twice as long. On Zen 5 they gain, except I8 at level 4; float formats do not.
  if (has_avx512()) return is_zen5() && is_quantized(format) && !(rounded && format == Format::kI8) ? 4096 : 0;
  // Zen 3: four times the bytes of 64 columns in integers. With so much arithmetic between their lines, the processor
  // does not look far enough ahead by itself; f32 does not gain.
  const size_t bits = element_bits(format);
  if (bits == 32) return 0;
  if (is_zen2() && bits != 4) return 512;  // farther slows it down; of panels side by side
  return is_quantized(format) ? 4 * (64 + 128 * bits) : 1024;
#else
  (void)format, (void)rounded;
  return 0;  // not measured
#endif
}

bool reads_side_by_side(size_t panel_bytes) {
#ifdef PROSPARSE_SIDE_BY_SIDE
  return panel_bytes >= PROSPARSE_SIDE_BY_SIDE;
#elif defined(__x86_64__)
  // Zen 2: panels of 5 KB (I4, d_model 576) lose, of 10 KB gain.
  static const bool zen2 = is_zen2();
  return zen2 && panel_bytes >= 8192;
#else
  (void)panel_bytes;
  return false;  // not measured
#endif
}

int row_prefetches(size_t d_model) {
#if defined(__x86_64__)
  static const bool intel = is_intel();
  const int times = intel ? 1 : 2;
#else
  const int times = 1;
#endif
#ifdef PROSPARSE_FIRST_PREFETCHED
  return d_model >= PROSPARSE_FIRST_PREFETCHED ? times : 0;
#else
  // Measured by benchmarks/tuning.py. Once, shorter rows do not gain.
  return times == 2 || d_model >= 1024 ? times : 0;
#endif
}

bool is_worth_prefetching(size_t fresh, size_t rows) {
  constexpr size_t kPercent = 10;  // measured on Zen 5: 0 to 25 are within 2%, 50 loses 10%
  return fresh * 100 > rows * kPercent;
}

size_t batch_tokens(const DotKernels& dot) {
#if defined(__x86_64__)
  static const bool zen5 = is_zen5();
#else
  const bool zen5 = false;
#endif
  return zen5 ? dot.batch.on_zen5 : dot.batch.elsewhere;
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
