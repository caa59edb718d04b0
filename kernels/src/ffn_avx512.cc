// AVX-512F: 16 columns per step, four accumulators per dot product.
//
// A dot product is a fixed tree: chunk i of 16 columns goes to accumulator i % 4, a partial last
// chunk likewise under a mask, then (0 + 1) + (2 + 3), then the sum of the 16 lanes. Four
// accumulators cover the multiply-add's latency (4 cycles on Zen 4 and Ice Lake) with one row in
// flight: a dense product is one linear stream, which the hardware prefetcher follows best.
#include "prosparse/ffn_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_AVX512 __attribute__((target("avx512f")))

namespace prosparse {
namespace {

PROSPARSE_AVX512 __mmask16 first_lanes(size_t count) {
  return static_cast<__mmask16>((1u << count) - 1u);  // count < 16
}

PROSPARSE_AVX512 float lane_sum(__m512 a0, __m512 a1, __m512 a2, __m512 a3) {
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a0, a1), _mm512_add_ps(a2, a3)));
}

// What is left after the steps of 64 columns: up to three chunks and a partial one.
PROSPARSE_AVX512 float finish_dot(__m512* a, const float* w, const float* x, size_t c, size_t cols) {
  size_t i = 0;
  for (; c + 16 <= cols; c += 16, ++i) {
    a[i] = _mm512_fmadd_ps(_mm512_loadu_ps(w + c), _mm512_loadu_ps(x + c), a[i]);
  }
  if (c < cols) {
    const __mmask16 mask = first_lanes(cols - c);
    a[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, w + c), _mm512_maskz_loadu_ps(mask, x + c), a[i]);
  }
  return lane_sum(a[0], a[1], a[2], a[3]);
}

PROSPARSE_AVX512 float dot(const float* w, const float* x, size_t cols) {
  __m512 a[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  size_t c = 0;
  for (; c + 64 <= cols; c += 64) {
    for (size_t i = 0; i < 4; ++i) {
      a[i] = _mm512_fmadd_ps(_mm512_loadu_ps(w + c + 16 * i), _mm512_loadu_ps(x + c + 16 * i), a[i]);
    }
  }
  return finish_dot(a, w, x, c, cols);
}

// One row, four tokens: each chunk of w is loaded once.
PROSPARSE_AVX512 void dot_4_tokens(const float* w, const float* x, size_t cols, float bias, float* z,
                                   size_t z_stride) {
  __m512 a[4][4];
  for (size_t t = 0; t < 4; ++t) {
    for (size_t i = 0; i < 4; ++i) a[t][i] = _mm512_setzero_ps();
  }
  size_t c = 0;
  for (; c + 64 <= cols; c += 64) {
    for (size_t i = 0; i < 4; ++i) {
      const __m512 chunk = _mm512_loadu_ps(w + c + 16 * i);
      for (size_t t = 0; t < 4; ++t) {
        a[t][i] = _mm512_fmadd_ps(chunk, _mm512_loadu_ps(x + t * cols + c + 16 * i), a[t][i]);
      }
    }
  }
  for (size_t t = 0; t < 4; ++t) z[t * z_stride] = bias + finish_dot(a[t], w, x + t * cols, c, cols);
}

PROSPARSE_AVX512 void dot_rows_avx512(const float* w, const float* b, size_t rows, size_t cols,
                                      const float* x, size_t tokens, float* z, size_t z_stride) {
  for (size_t r = 0; r < rows; ++r) {
    const float* row = w + r * cols;
    size_t t = 0;
    for (; t + 4 <= tokens; t += 4) dot_4_tokens(row, x + t * cols, cols, b[r], z + t * z_stride + r, z_stride);
    for (; t < tokens; ++t) z[t * z_stride + r] = b[r] + dot(row, x + t * cols, cols);
  }
}

// Four rows at once, and the next four on their way into the L2 cache: the active rows lie apart, so
// the hardware prefetcher starts anew at each (1.3 to 2 times faster than row after row).
PROSPARSE_AVX512 void dot_active_avx512(const float* w, const float* b, size_t cols, const float* x,
                                        const int32_t* active, size_t count, float* u) {
  size_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const float *row[4], *next[4];
    __m512 a[4][4];
    for (size_t m = 0; m < 4; ++m) {
      row[m] = w + static_cast<size_t>(active[k + m]) * cols;
      next[m] = k + 4 + m < count ? w + static_cast<size_t>(active[k + 4 + m]) * cols : row[m];
      for (size_t i = 0; i < 4; ++i) a[m][i] = _mm512_setzero_ps();
    }
    size_t c = 0;
    for (; c + 64 <= cols; c += 64) {
      for (size_t i = 0; i < 4; ++i) {
        const __m512 chunk = _mm512_loadu_ps(x + c + 16 * i);
        for (size_t m = 0; m < 4; ++m) {
          _mm_prefetch(reinterpret_cast<const char*>(next[m] + c + 16 * i), _MM_HINT_T1);
          a[m][i] = _mm512_fmadd_ps(_mm512_loadu_ps(row[m] + c + 16 * i), chunk, a[m][i]);
        }
      }
    }
    for (size_t m = 0; m < 4; ++m) u[k + m] = b[active[k + m]] + finish_dot(a[m], row[m], x, c, cols);
  }
  for (; k < count; ++k) {
    u[k] = b[active[k]] + dot(w + static_cast<size_t>(active[k]) * cols, x, cols);
  }
}

PROSPARSE_AVX512 void axpy_active_avx512(const float* w, size_t row_stride, const float* b,
                                         const float* h, const int32_t* active, size_t count,
                                         size_t cols, float* y) {
  for (size_t j = 0; j < cols; ++j) y[j] = b[j];
  const __mmask16 tail = first_lanes(cols % 16);
  size_t k = 0;
  for (; k + 4 <= count; k += 4) {  // y stays in the L1 cache; four rows per pass over it
    const float *row[4], *next[4];
    __m512 factor[4];
    for (size_t m = 0; m < 4; ++m) {
      row[m] = w + static_cast<size_t>(active[k + m]) * row_stride;
      next[m] = k + 4 + m < count ? w + static_cast<size_t>(active[k + 4 + m]) * row_stride : row[m];
      factor[m] = _mm512_set1_ps(h[k + m]);
    }
    size_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      __m512 sum = _mm512_loadu_ps(y + j);
      for (size_t m = 0; m < 4; ++m) {
        _mm_prefetch(reinterpret_cast<const char*>(next[m] + j), _MM_HINT_T1);
        sum = _mm512_fmadd_ps(factor[m], _mm512_loadu_ps(row[m] + j), sum);
      }
      _mm512_storeu_ps(y + j, sum);
    }
    if (j < cols) {
      __m512 sum = _mm512_maskz_loadu_ps(tail, y + j);
      for (size_t m = 0; m < 4; ++m) sum = _mm512_fmadd_ps(factor[m], _mm512_maskz_loadu_ps(tail, row[m] + j), sum);
      _mm512_mask_storeu_ps(y + j, tail, sum);
    }
  }
  for (; k < count; ++k) {
    const float* row = w + static_cast<size_t>(active[k]) * row_stride;
    const __m512 factor = _mm512_set1_ps(h[k]);
    size_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      _mm512_storeu_ps(y + j, _mm512_fmadd_ps(factor, _mm512_loadu_ps(row + j), _mm512_loadu_ps(y + j)));
    }
    if (j < cols) {
      const __m512 sum = _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(tail, row + j), _mm512_maskz_loadu_ps(tail, y + j));
      _mm512_mask_storeu_ps(y + j, tail, sum);
    }
  }
}

}  // namespace

const FfnKernels kAvx512Kernels = {"avx512", dot_rows_avx512, dot_active_avx512, axpy_active_avx512};

}  // namespace prosparse
#endif  // __x86_64__
