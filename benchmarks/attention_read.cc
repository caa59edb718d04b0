// What an attention operator of our own could gain: one decode step over an int8 KV cache with a scale per token and
// head, 2 threads, against a bare read of the same bytes. AVX-512 with VNNI. See docs/decisions/attention-operator.md.
//
//   g++ -O3 -march=native benchmarks/attention_read.cc -o attention_read -lpthread && ./attention_read

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

struct Shape {
  const char* name;
  int layers, heads, kv_heads, dim;
};

struct Cache {
  std::vector<int8_t> keys, values;  // [kv_heads, tokens, dim]
};

// y = softmax(q . K^T) . V of one head. q is rounded to 8 bits; K and V have one scale per token.
void attend(const float* q, const int8_t* keys, const int8_t* values, const float* scales, int tokens, int dim,
            float* scores, float* y) {
  alignas(64) int8_t rounded[128];
  float largest = 0;
  for (int d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(q[d]));
  const float step = largest / 127;
  int sum = 0;
  for (int d = 0; d < dim; ++d) sum += rounded[d] = static_cast<int8_t>(std::lrint(q[d] / step));
  float top = -INFINITY;
  for (int t = 0; t < tokens; ++t) {
    __m512i acc = _mm512_setzero_si512();
    const int8_t* key = keys + static_cast<size_t>(t) * dim;
    _mm_prefetch(reinterpret_cast<const char*>(key) + 2048, _MM_HINT_T0);
    for (int d = 0; d < dim; d += 64) {  // VNNI multiplies unsigned by signed bytes
      const __m512i shifted = _mm512_xor_si512(_mm512_loadu_si512(key + d), _mm512_set1_epi8(static_cast<char>(0x80)));
      acc = _mm512_dpbusd_epi32(acc, shifted, _mm512_load_si512(rounded + d));
    }
    scores[t] = static_cast<float>(_mm512_reduce_add_epi32(acc) - 128 * sum) * step * scales[t];
    top = std::max(top, scores[t]);
  }
  float total = 0;
  for (int t = 0; t < tokens; ++t) {
    const float weight = std::exp(scores[t] - top);
    total += weight;
    scores[t] = weight * scales[t];
  }
  __m512 acc[8];
  for (int i = 0; i < dim / 16; ++i) acc[i] = _mm512_setzero_ps();
  for (int t = 0; t < tokens; ++t) {
    const int8_t* value = values + static_cast<size_t>(t) * dim;
    _mm_prefetch(reinterpret_cast<const char*>(value) + 2048, _MM_HINT_T0);
    for (int i = 0; i < dim / 16; ++i) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value + 16 * i));
      const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
      acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(scores[t]), wide, acc[i]);
    }
  }
  for (int i = 0; i < dim / 16; ++i) _mm512_storeu_ps(y + 16 * i, _mm512_mul_ps(acc[i], _mm512_set1_ps(1 / total)));
}

template <class Work>
double median_milliseconds(const Work& work) {
  std::vector<double> times;
  for (int round = 0; round < 15; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    std::thread other([&] { work(1); });
    work(0);
    other.join();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void measure(const Shape& shape, int tokens) {
  const size_t bytes = static_cast<size_t>(shape.kv_heads) * tokens * shape.dim;
  std::vector<Cache> layers(shape.layers);
  for (Cache& layer : layers) layer = {std::vector<int8_t>(bytes + 4096, 3), std::vector<int8_t>(bytes + 4096, 5)};
  const std::vector<float> scales(tokens, 0.01f), q(shape.heads * shape.dim, 0.5f);
  std::vector<float> y(q.size());
  int64_t sums[2];
  const double attention = median_milliseconds([&](int thread) {
    std::vector<float> scores(tokens);
    for (const Cache& layer : layers) {
      for (int head = thread * shape.heads / 2; head < (thread + 1) * shape.heads / 2; ++head) {
        const size_t at = static_cast<size_t>(head / (shape.heads / shape.kv_heads)) * tokens * shape.dim;
        attend(&q[head * shape.dim], &layer.keys[at], &layer.values[at], scales.data(), tokens, shape.dim,
               scores.data(), &y[head * shape.dim]);
      }
    }
  });
  const double read = median_milliseconds([&](int thread) {
    __m512i acc = _mm512_setzero_si512();
    for (const Cache& layer : layers) {
      for (const auto* data : {&layer.keys, &layer.values}) {
        for (size_t i = 0; i < bytes / 2; i += 64) {
          acc = _mm512_add_epi64(acc, _mm512_loadu_si512(data->data() + thread * bytes / 2 + i));
        }
      }
    }
    sums[thread] = _mm512_reduce_add_epi64(acc);
  });
  std::printf("%s, %d tokens, %.0f MB: attention %.2f ms, bare read %.2f ms\n", shape.name, tokens,
              2e-6 * static_cast<double>(bytes) * shape.layers, attention, read);
}

}  // namespace

int main() {
  for (const Shape& shape : {Shape{"Llama-2-7B, 8 layers", 8, 32, 32, 128}, Shape{"TinyLlama", 22, 32, 4, 64}}) {
    for (const int tokens : {128, 1024, 3900}) measure(shape, tokens);
  }
}
