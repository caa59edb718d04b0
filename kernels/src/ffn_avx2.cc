// AVX2 with FMA: 8 columns per step, four accumulators per dot product.
//
// A dot product is a fixed tree: chunk i of 8 columns goes to accumulator i % 4, then
// (0 + 1) + (2 + 3), then the 8 lanes by halves; the up to 7 columns left are added one by one, in order,
// with one rounding each. There are 16 registers, so two rows or tokens at a time.
#include "prosparse/ffn_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PROSPARSE_AVX2 __attribute__((target("avx2,fma")))

namespace prosparse {
namespace {

PROSPARSE_AVX2 float fused(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

PROSPARSE_AVX2 float lane_sum(__m256 a0, __m256 a1, __m256 a2, __m256 a3) {
  const __m256 sum = _mm256_add_ps(_mm256_add_ps(a0, a1), _mm256_add_ps(a2, a3));
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  half = _mm_add_ss(half, _mm_movehdup_ps(half));
  return _mm_cvtss_f32(half);
}

// What is left after the steps of 32 columns: up to three chunks and up to seven columns.
PROSPARSE_AVX2 float finish_dot(__m256* a, const float* w, const float* x, size_t c, size_t cols) {
  for (size_t i = 0; c + 8 <= cols; c += 8, ++i) {
    a[i] = _mm256_fmadd_ps(_mm256_loadu_ps(w + c), _mm256_loadu_ps(x + c), a[i]);
  }
  float sum = lane_sum(a[0], a[1], a[2], a[3]);
  for (; c < cols; ++c) sum = fused(w[c], x[c], sum);
  return sum;
}

PROSPARSE_AVX2 float dot(const float* w, const float* x, size_t cols) {
  __m256 a[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  size_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (size_t i = 0; i < 4; ++i) {
      a[i] = _mm256_fmadd_ps(_mm256_loadu_ps(w + c + 8 * i), _mm256_loadu_ps(x + c + 8 * i), a[i]);
    }
  }
  return finish_dot(a, w, x, c, cols);
}

// Two products that share one operand: two tokens of a row, or two rows of a token. `ahead0` and
// `ahead1` are what comes next in memory, for the prefetcher.
PROSPARSE_AVX2 void dot_pair(const float* shared, const float* p0, const float* p1, const float* ahead0,
                             const float* ahead1, size_t cols, float* sums) {
  __m256 a[2][4];
  for (size_t i = 0; i < 4; ++i) a[0][i] = a[1][i] = _mm256_setzero_ps();
  size_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (size_t i = 0; i < 4; ++i) {
      const __m256 chunk = _mm256_loadu_ps(shared + c + 8 * i);
      a[0][i] = _mm256_fmadd_ps(chunk, _mm256_loadu_ps(p0 + c + 8 * i), a[0][i]);
      a[1][i] = _mm256_fmadd_ps(chunk, _mm256_loadu_ps(p1 + c + 8 * i), a[1][i]);
    }
    for (size_t i = 0; i < 32; i += 16) {  // one per cache line of 64 bytes
      _mm_prefetch(reinterpret_cast<const char*>(ahead0 + c + i), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(ahead1 + c + i), _MM_HINT_T1);
    }
  }
  sums[0] = finish_dot(a[0], shared, p0, c, cols);
  sums[1] = finish_dot(a[1], shared, p1, c, cols);
}

PROSPARSE_AVX2 void dot_rows_avx2(const float* w, const float* b, size_t rows, size_t cols,
                                  const float* x, size_t tokens, float* z, size_t z_stride) {
  for (size_t r = 0; r < rows; ++r) {
    const float* row = w + r * cols;
    size_t t = 0;
    for (; t + 2 <= tokens; t += 2) {
      const float *x0 = x + t * cols, *x1 = x0 + cols;
      float sums[2];
      dot_pair(row, x0, x1, x0, x1, cols, sums);
      z[t * z_stride + r] = b[r] + sums[0];
      z[(t + 1) * z_stride + r] = b[r] + sums[1];
    }
    for (; t < tokens; ++t) z[t * z_stride + r] = b[r] + dot(row, x + t * cols, cols);
  }
}

PROSPARSE_AVX2 void dot_active_avx2(const float* w, const float* b, size_t cols, const float* x,
                                    const int32_t* active, size_t count, float* u) {
  size_t k = 0;
  for (; k + 2 <= count; k += 2) {
    const float* row0 = w + static_cast<size_t>(active[k]) * cols;
    const float* row1 = w + static_cast<size_t>(active[k + 1]) * cols;
    const float* next0 = k + 2 < count ? w + static_cast<size_t>(active[k + 2]) * cols : row0;
    const float* next1 = k + 3 < count ? w + static_cast<size_t>(active[k + 3]) * cols : row1;
    float sums[2];
    dot_pair(x, row0, row1, next0, next1, cols, sums);
    u[k] = b[active[k]] + sums[0];
    u[k + 1] = b[active[k + 1]] + sums[1];
  }
  if (k < count) u[k] = b[active[k]] + dot(w + static_cast<size_t>(active[k]) * cols, x, cols);
}

PROSPARSE_AVX2 void axpy_active_avx2(const float* w, size_t row_stride, const float* b, const float* h,
                                     const int32_t* active, size_t count, size_t cols, float* y) {
  for (size_t j = 0; j < cols; ++j) y[j] = b[j];
  size_t k = 0;
  for (; k + 4 <= count; k += 4) {  // y stays in the L1 cache; four rows per pass over it
    const float *row[4], *next[4];
    __m256 factor[4];
    for (size_t m = 0; m < 4; ++m) {
      row[m] = w + static_cast<size_t>(active[k + m]) * row_stride;
      next[m] = k + 4 + m < count ? w + static_cast<size_t>(active[k + 4 + m]) * row_stride : row[m];
      factor[m] = _mm256_set1_ps(h[k + m]);
    }
    size_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      __m256 low = _mm256_loadu_ps(y + j), high = _mm256_loadu_ps(y + j + 8);
      for (size_t m = 0; m < 4; ++m) {
        _mm_prefetch(reinterpret_cast<const char*>(next[m] + j), _MM_HINT_T1);
        low = _mm256_fmadd_ps(factor[m], _mm256_loadu_ps(row[m] + j), low);
        high = _mm256_fmadd_ps(factor[m], _mm256_loadu_ps(row[m] + j + 8), high);
      }
      _mm256_storeu_ps(y + j, low);
      _mm256_storeu_ps(y + j + 8, high);
    }
    for (; j < cols; ++j) {
      for (size_t m = 0; m < 4; ++m) y[j] = fused(h[k + m], row[m][j], y[j]);
    }
  }
  for (; k < count; ++k) {
    const float* row = w + static_cast<size_t>(active[k]) * row_stride;
    const __m256 factor = _mm256_set1_ps(h[k]);
    size_t j = 0;
    for (; j + 8 <= cols; j += 8) {
      _mm256_storeu_ps(y + j, _mm256_fmadd_ps(factor, _mm256_loadu_ps(row + j), _mm256_loadu_ps(y + j)));
    }
    for (; j < cols; ++j) y[j] = fused(h[k], row[j], y[j]);
  }
}

}  // namespace

const FfnKernels kAvx2Kernels = {"avx2", dot_rows_avx2, dot_active_avx2, axpy_active_avx2};

}  // namespace prosparse
#endif  // __x86_64__
