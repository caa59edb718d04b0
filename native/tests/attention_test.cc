// Attention's kernels of each variant against double precision, with the contract's bound; rows of the cache.
#include <cfloat>
#include <limits>

#include "attention.h"
#include "cache_rows.h"
#include "check.h"
#include "random_ffn.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// By the words of attention.h.
double cached(CacheFormat format, const std::vector<uint8_t>& rows, size_t head_dim, size_t t, size_t d) {
  if (format == CacheFormat::kF32) {
    float value;
    std::memcpy(&value, &rows[(t * head_dim + d) * sizeof(float)], sizeof(float));
    return value;
  }
  const int8_t* row = reinterpret_cast<const int8_t*>(&rows[t * cache_row_bytes(head_dim)]);
  const int8_t* scale = row + head_dim + 2 * (d / 32);
  const uint32_t bits = static_cast<uint32_t>(static_cast<uint8_t>(scale[0])) << 16 |
                        static_cast<uint32_t>(static_cast<uint8_t>(scale[1])) << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return double{value} * row[d];
}

struct Rows {
  std::vector<uint8_t> keys, values;  // exactly as many bytes as the tokens have: reading beyond shows
  Rows(CacheFormat format, size_t head_dim, size_t count, std::mt19937& rng)
      : keys(count * cache_row_bytes(format, head_dim)), values(keys.size()) {
    for (size_t t = 0; t < count; ++t) {
      const std::vector<float> key = normals(rng, head_dim), value = normals(rng, head_dim);
      const size_t at = t * cache_row_bytes(format, head_dim);
      if (format == CacheFormat::kF32) {
        std::memcpy(&keys[at], key.data(), head_dim * sizeof(float));
        std::memcpy(&values[at], value.data(), head_dim * sizeof(float));
        continue;
      }
      store_rows(key.data(), value.data(), head_dim, reinterpret_cast<int8_t*>(&keys[at]),
                 reinterpret_cast<int8_t*>(&values[at]));
      for (size_t d = 0; d < head_dim; ++d) {
        ++cases;
        const int byte = static_cast<int8_t>(keys[at + d]);
        const double stored = cached(format, keys, head_dim, t, d);
        const double step = std::abs(stored / std::max(1, std::abs(byte))), off = std::abs(stored - key[d]);
        CHECK(byte == 0 || off <= step * (0.5 + 1e-5), "key %zu of %zu: off by %g steps", d, head_dim, off / step);
      }
    }
  }
};

void check_near(const char* isa, const char* kernel, double actual, double exact, double bound, size_t head_dim) {
  ++cases;
  CHECK(std::abs(actual - exact) <= bound, "%s %s head_dim=%zu: expected %.9g, got %.9g, bound %.3g", isa, kernel,
        head_dim, exact, actual, bound);
}

void test_kernels(const Kernels& k, CacheFormat format, size_t head_dim, size_t rows, size_t count) {
  std::mt19937 rng(static_cast<unsigned>(head_dim * 100 + rows * 10 + count));
  const Rows cache(format, head_dim, count, rng);
  const CacheKernels& kernels = k.attention.cache[static_cast<size_t>(format)];
  const size_t padded = round_up(head_dim, kLanes), stride = round_up(count, kKeyTile) + 4;
  std::vector<float> q(rows * padded), tile(kKeyTile * padded), scores(rows * stride, -7.0f), y(rows * padded);
  for (size_t r = 0; r < rows; ++r) {
    const std::vector<float> x = normals(rng, head_dim);
    std::copy(x.begin(), x.end(), &q[r * padded]);
  }
  kernels.scores(q.data(), rows, {cache.keys.data(), head_dim, count}, tile.data(), scores.data(), stride);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t t = 0; t < count; ++t) {
      double exact = 0.0, size = 0.0, rounded = 0.0;
      for (size_t d = 0; d < head_dim; ++d) {
        const double key = cached(format, cache.keys, head_dim, t, d);
        float most = 0.0f;
        for (size_t i = d / 32 * 32; i < std::min(head_dim, d / 32 * 32 + 32); ++i)
          most = std::max(most, std::abs(q[r * padded + i]));
        exact += key * q[r * padded + d];
        size += std::abs(key * q[r * padded + d]);
        rounded += format == CacheFormat::kI8 ? std::abs(key) * most / kSteps / 2 : 0.0;
      }
      const double bound = gamma_bound(head_dim + 4) * (size + rounded) + (rows == 1 ? rounded * 1.01 : 0.0);
      check_near(k.isa, "scores", scores[r * stride + t], exact, bound, head_dim);
    }
    for (size_t t = stride - 4; t < stride; ++t)
      CHECK(scores[r * stride + t] == -7.0f, "%s: wrote beyond the scores", k.isa);
  }
  std::vector<float> weights = normals(rng, rows * stride);
  kernels.values(weights.data(), stride, rows, {cache.values.data(), head_dim, count}, tile.data(), y.data());
  for (size_t r = 0; r < rows; ++r) {
    for (size_t d = 0; d < head_dim; ++d) {
      double exact = 0.0, size = 0.0;
      for (size_t t = 0; t < count; ++t) {
        const double term = cached(format, cache.values, head_dim, t, d) * weights[r * stride + t];
        exact += term;
        size += std::abs(term);
      }
      check_near(k.isa, "values", y[r * padded + d], exact, gamma_bound(count + 2) * size, head_dim);
    }
  }
}

void test_softmax(const Kernels& k, size_t count) {
  std::mt19937 rng(static_cast<unsigned>(count));
  std::vector<float> scores = normals(rng, count);
  for (float& score : scores) score *= 30.0f;
  const std::vector<float> before = scores;
  const float top = k.attention.top(scores.data(), count);
  CHECK(top == *std::max_element(before.begin(), before.end()), "%s: the largest of %zu scores", k.isa, count);
  const double total = k.attention.exponentials(scores.data(), count, top);
  double sum = 0.0;
  for (size_t t = 0; t < count; ++t) {
    const float difference = before[t] - top;
    const double exact = std::exp(double{difference});
    check_near(k.isa, "exp", scores[t], exact, 4 * std::ldexp(exact, -23) + 2e-38, count);
    sum += exact;
  }
  check_near(k.isa, "sum", total, sum, (gamma_bound(count) + 1e-6) * sum, count);
  CHECK(k.attention.top(scores.data(), 0) == -FLT_MAX, "%s: the largest of no scores", k.isa);
  scores = before;
  scores[count / 2] = NAN;
  CHECK(std::isnan(k.attention.exponentials(scores.data(), count, top)), "%s: a NaN is lost", k.isa);
  scores = before;
  scores[count / 2] = -INFINITY;
  const float rest = k.attention.top(scores.data(), count);
  CHECK(std::isfinite(k.attention.exponentials(scores.data(), count, rest)) && scores[count / 2] < 2e-38f,
        "%s: a score of -Inf counts", k.isa);
}

// One order of operations, whatever runs first: rows of different lengths, prompts and a step.
void test_order(const Kernels& k, CacheFormat format, size_t group, size_t tokens) {
  std::mt19937 rng(7);
  const Attention attention{format, 2 * group, 2, 64, 0.125f, 0, nullptr, nullptr, 0, 0};
  const size_t lengths[] = {600, 530}, slots = 601, bytes = 2 * 2 * slots * cache_row_bytes(format, 64);
  const Rows past(format, 64, 2 * 2 * slots, rng);
  const std::vector<float> qkv = normals(rng, 2 * tokens * (2 * group + 4) * 64);
  std::vector<float> y[3];
  for (unsigned seed = 0; seed < 3; ++seed) {
    std::vector<uint8_t> keys = past.keys, values = past.values;
    y[seed].resize(2 * tokens * 2 * group * 64);
    const AttentionBatch batch{qkv.data(), 2, tokens, lengths, keys.data(), values.data(), slots, y[seed].data()};
    Scratch scratch;
    run_attention(k, attention, batch, {run_shuffled, &seed}, scratch);
    CHECK(y[seed] == y[0], "%s: results depend on the order of tasks", k.isa);
    CHECK(keys.size() == bytes && keys != past.keys, "%s: nothing was appended", k.isa);
    ++cases;
  }
}

// The scores of a prompt take memory for some tasks of 64 queries and 512 slots, not for the whole context.
void test_memory(const Kernels& k, CacheFormat format) {
  std::mt19937 rng(8);
  const Attention attention{format, 4, 4, 64, 0.125f, 0, nullptr, nullptr, 0, 0};
  const size_t tokens = 40;
  const std::vector<float> qkv = normals(rng, tokens * 12 * 64);
  size_t sizes[2] = {};
  for (const size_t many : {0, 1}) {
    const size_t length = many ? 9000 : 600;
    Rows cache(format, 64, 4 * length, rng);
    std::vector<float> y(tokens * 4 * 64);
    unsigned seed = 0;
    Scratch scratch;
    const AttentionBatch batch{qkv.data(),          1,      tokens,  &length, cache.keys.data(),
                               cache.values.data(), length, y.data()};
    run_attention(k, attention, batch, {run_shuffled, &seed}, scratch);
    sizes[many] = scratch.attention.size();
    ++cases;
  }
  const size_t task = 64 * (3 * 64 + 512) + kKeyTile * 64;  // floats: queries, two results, scores; a tile
  CHECK(sizes[0] == sizes[1] && sizes[1] <= 32 * task * sizeof(float) + 4096,
        "%s: %zu bytes at 600 tokens, %zu at 9000", k.isa, sizes[0], sizes[1]);
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = is_brief(argc, argv);
  for (const Kernels* k : variants_to_test(argc, argv)) {
    for (const CacheFormat format : {CacheFormat::kI8, CacheFormat::kF32}) {
      for (const size_t head_dim : {8, 40, 64, 96, 128, 256}) {
        for (const size_t rows : {1, 3, 8, 64}) {
          for (const size_t count : brief ? std::vector<size_t>{35} : std::vector<size_t>{1, 3, 31, 32, 70})
            test_kernels(*k, format, head_dim, rows, count);
        }
      }
      for (const size_t group : {1, 3}) test_order(*k, format, group, 1), test_order(*k, format, group, 40);
      test_memory(*k, format);
    }
    for (const size_t count : {1, 15, 16, 100}) test_softmax(*k, count);
  }
  return report(cases);
}
