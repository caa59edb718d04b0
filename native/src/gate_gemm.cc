#include "gate_gemm.h"

namespace prosparse {

void gate_gemm(const Kernels& kernels, const Panels& w, size_t first, size_t last, const Tokens& x,
               const DotTokens* bytes, const Scratch& scratch, float* z, size_t z_stride) {
  const size_t format = static_cast<size_t>(w.format);
  if (bytes != nullptr) {
    bytes->kernels->multiply(w, first, last, *bytes, {nullptr, 0}, z + first * kLanes, z_stride);
  } else {
    kernels.of[format].gemm_panels(w, first, last, x, z, z_stride);
  }
  const Kernels& fallback = is_quantized(w.format) ? kScalarKernels : kernels;
  for (size_t t = 0; t < x.count; ++t) {
    if (!scratch.needs_fallback[t].load(std::memory_order_relaxed) || scratch.is_nan[t]) continue;
    fallback.of[format].gemm_panels(w, first, last, one_token(x, t), z + t * z_stride, z_stride);
  }
}

}  // namespace prosparse
