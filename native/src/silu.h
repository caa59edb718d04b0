// SiLU, and its neurons' activity, which is by magnitude.
#ifndef PROSPARSE_SILU_H_
#define PROSPARSE_SILU_H_

#include <cstddef>
#include <cstdint>

namespace prosparse {

// z[i] = z[i] / (1 + exp(-z[i])), within 8 ulp and 1e-37; a NaN and -Inf give NaN.
void silu(float* z, size_t count);

// Kernels::compact by magnitude: lists the neurons with !(|z[k]| <= threshold). One implementation for all variants:
// with half of the neurons active it costs little next to their up_proj and down_proj.
size_t compact_magnitude(const float* z, size_t count, float threshold, int32_t* active, float* a);

}  // namespace prosparse

#endif  // PROSPARSE_SILU_H_
