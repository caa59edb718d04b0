#include "round_weights.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cpu_features.h"
#include "half.h"
#include "in_parallel.h"

namespace prosparse {
namespace {

constexpr int32_t kFloat32 = 1, kFloat16 = 10, kBFloat16 = 16;

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// To nearest float16, ties to even; Inf beyond 65520.
uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);  // NaN
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (size < 0x38800000u) {  // subnormal: a step is 2^-24, and the sum's last bit is 2^-24 too
    const float sum = from_bits(size) + 0.5f;
    std::memcpy(&bits, &sum, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

namespace any {
#define PROSPARSE_REGISTER 16
// clang-format off: each needs those above it
#include "weight_tiles.inc"
#include "search_scales.inc"
#include "round_weights.inc"
// clang-format on
#undef PROSPARSE_REGISTER
constexpr RoundingKernels kKernels = {"any", kStrip, search_strip, round_strip};
}  // namespace any

#if defined(__x86_64__)
#define PROSPARSE_TARGET "avx2"
#include "target_begin.inc"
namespace avx2 {
#define PROSPARSE_REGISTER 32
// clang-format off
#include "weight_tiles.inc"
#include "search_scales.inc"
#include "round_weights.inc"
// clang-format on
#undef PROSPARSE_REGISTER
}  // namespace avx2
#include "target_end.inc"
constexpr RoundingKernels kAvx2Rounding = {"avx2", avx2::kStrip, avx2::search_strip, avx2::round_strip};
#endif

bool always() { return true; }

const RoundingKernels& best_kernels() {
  for (const RoundingVariant* variant = kRoundingVariants;; ++variant) {
    if (variant->is_supported()) return *variant->kernels;
  }
}

// Calls strip(k) for all strips of rows until one of them returns false.
template <class Strip>
bool all_strips(const RoundingKernels& kernels, const SourceWeights& weights, unsigned threads, const Strip& strip) {
  if (weights.type != kFloat32 && weights.type != kFloat16 && weights.type != kBFloat16) return false;
  std::atomic<bool> is_done{true};
  in_parallel((weights.rows + kernels.rows - 1) / kernels.rows, threads, [&](size_t k) {
    if (is_done.load(std::memory_order_relaxed) && !strip(k)) is_done.store(false, std::memory_order_relaxed);
  });
  return is_done;
}

}  // namespace

const RoundingVariant kRoundingVariants[] = {
#if defined(__x86_64__)
    {&kAvx2Rounding, has_avx2},
#endif
    {&any::kKernels, always},
};
const size_t kRoundingVariantCount = sizeof(kRoundingVariants) / sizeof(kRoundingVariants[0]);

bool search_scales(const RoundingKernels& kernels, const SourceWeights& weights, const ScaleSearch& search,
                   uint16_t* scales, unsigned threads) {
  return all_strips(kernels, weights, threads,
                    [&](size_t strip) { return kernels.search(weights, search, strip, scales); });
}

bool round_weights(const RoundingKernels& kernels, const SourceWeights& weights, const uint16_t* scales,
                   const RoundedWeights& rounded, unsigned threads) {
  return all_strips(kernels, weights, threads,
                    [&](size_t strip) { return kernels.round(weights, scales, strip, rounded); });
}

bool search_scales(const SourceWeights& weights, const ScaleSearch& search, uint16_t* scales, unsigned threads) {
  return search_scales(best_kernels(), weights, search, scales, threads);
}

bool round_weights(const SourceWeights& weights, const uint16_t* scales, const RoundedWeights& rounded,
                   unsigned threads) {
  return round_weights(best_kernels(), weights, scales, rounded, threads);
}

}  // namespace prosparse
