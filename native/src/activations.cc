#include "activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace prosparse {

void* Buffer::bytes(size_t size) {
  if (size > size_) {
    data_.reset();
    size_ = 0;
    const size_t room = round_up(size + 256, 4096);
    data_.reset(std::aligned_alloc(4096, room));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = room - 256;  // vectors may read, not use, a little past the end
  }
  return data_.get();
}

std::shared_ptr<ScratchPool> ScratchPool::shared() {
  static std::mutex mutex;
  static std::weak_ptr<ScratchPool> current;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<ScratchPool> pool = current.lock();
  if (pool == nullptr) current = pool = std::make_shared<ScratchPool>();
  return pool;
}

std::unique_ptr<Scratch> ScratchPool::take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<Scratch> scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>();
}

void ScratchPool::give_back(std::unique_ptr<Scratch> scratch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(scratch));
}

Range piece(size_t total, size_t pieces, size_t index, size_t multiple) {
  const size_t size = round_up((total + pieces - 1) / pieces, multiple);
  return {std::min(total, index * size), std::min(total, (index + 1) * size)};
}

namespace {

bool is_tame(const float* x, size_t count) {
  bool tame = true;
  for (size_t i = 0; i < count; ++i) tame &= std::fabs(x[i]) < kLargest;
  return tame;
}

// Kernels::digits, in place: `length` pairs of each of `group` tokens side by side.
void split_digits(int32_t* pairs, size_t group, size_t length, size_t fields_per_line) {
  const size_t half = fields_per_line / 2 * group;
  for (size_t line = 0; line < length * group; line += 2 * half) {
    for (size_t i = line; i < line + half; ++i) {
      const uint32_t a = static_cast<uint32_t>(pairs[i]), b = static_cast<uint32_t>(pairs[i + half]);
      const uint32_t bytes = 0x00ff00ffu;
      // high = (q - low) / 256 with low as a signed byte: add 128 to each word, keep its upper byte
      const auto high = [](uint32_t p) {
        return (((p & 0xffffu) + 128) >> 8 & 0xffu) | (((p >> 16) + 128) >> 8 & 0xffu) << 16;
      };
      pairs[i] = static_cast<int32_t>((a & bytes) | (b & bytes) << 8);
      pairs[i + half] = static_cast<int32_t>(high(a) | high(b) << 8);
    }
  }
}

// Element i of `group` tokens side by side: out[i * group + t] = in[t * stride + i].
template <class T>
void side_by_side(const T* in, size_t group, size_t stride, size_t length, T* out) {
  for (size_t i = 0; i < length; i += 16) {
    const size_t end = std::min(length, i + 16);
    for (size_t t = 0; t < group; ++t) {
      for (size_t k = i; k < end; ++k) out[k * group + t] = in[t * stride + k];
    }
  }
}

}  // namespace

Tokens prepare(const Kernels& kernels, Format format, size_t panels, const float* x, size_t count, size_t cols,
               const Parallel& parallel, Scratch& scratch) {
  const bool quantized = is_quantized(format);
  Tokens tokens{};
  tokens.count = count;
  tokens.cols = cols;
  tokens.stride = round_up(cols, quantized ? kPadColumns : kLanes);
  if (!quantized && count > 1 && tokens.stride % kWay == 0) tokens.stride += kLanes;
  tokens.x = x;
  float* padded = nullptr;
  if (tokens.stride != cols) tokens.x = padded = scratch.x.get<float>(count * tokens.stride);
  const size_t stride = tokens.stride, blocks = stride / kQuantBlock;
  const size_t first_split = kernels.of[static_cast<size_t>(format)].split_tokens;
  const bool split = first_split != 0 && count >= first_split;
  int16_t* q = quantized ? scratch.q.get<int16_t>(count * stride) : nullptr;
  float* scale = quantized ? scratch.scale.get<float>(count * blocks + kLanes) : nullptr;
  int16_t* q_dot = quantized ? scratch.q_dot.get<int16_t>(count * stride) : nullptr;
  int32_t* starts = quantized ? scratch.starts.get<int32_t>(count * stride / 2) : nullptr;
  int32_t* sums = quantized ? scratch.sums.get<int32_t>(count * blocks) : nullptr;
  parallel_for(parallel, count, [&](size_t t) {
    scratch.is_odd[t].store(false, std::memory_order_relaxed);
    scratch.is_nan[t] = false;
    if (padded != nullptr) {
      std::memcpy(padded + t * stride, x + t * cols, cols * sizeof(float));
      std::memset(padded + t * stride + cols, 0, (stride - cols) * sizeof(float));
    }
    const float* row = tokens.x + t * stride;
    if (!quantized) {
      if (split && !is_tame(row, cols)) scratch.is_odd[t].store(true, std::memory_order_relaxed);
      return;
    }
    if (is_tame(row, stride)) {
      kernels.quantize(row, stride, format, q + t * stride, q_dot + t * stride, scale + t * blocks,
                       starts + t * stride / 2, sums + t * blocks);
    } else {
      scratch.is_odd[t].store(true, std::memory_order_relaxed);
      scratch.is_nan[t] = std::any_of(row, row + stride, [](float value) { return std::isnan(value); });
      std::memset(q + t * stride, 0, stride * sizeof(*q));
      std::memset(scale + t * blocks, 0, blocks * sizeof(*scale));
      std::memset(q_dot + t * stride, 0, stride * sizeof(*q_dot));
      std::memset(starts + t * stride / 2, 0, stride / 2 * sizeof(*starts));
      std::memset(sums + t * blocks, 0, blocks * sizeof(*sums));
    }
  });
  tokens.q = q;
  tokens.scale = scale;
  tokens.q_dot = q_dot;
  tokens.starts = starts;
  tokens.sums = sums;
  if (split) {
    const size_t bytes = split_bytes(kLanes, cols);
    uint8_t* tiles = scratch.split.get<uint8_t>(split_bytes(count, cols));
    parallel_for(parallel, (count + kLanes - 1) / kLanes, [&](size_t b) {
      uint8_t* out = tiles + b * bytes;
      const size_t last = std::min(count, (b + 1) * kLanes);
      bool all = last == (b + 1) * kLanes;
      for (size_t t = b * kLanes; t < last; ++t) all &= !scratch.is_odd[t].load(std::memory_order_relaxed);
      if (!all) std::memset(out, 0, bytes);
      for (size_t t = b * kLanes; t < last; ++t) {
        if (!scratch.is_odd[t].load(std::memory_order_relaxed))
          kernels.split(tokens.x + t * stride, cols, out + t % kLanes * kLineBytes);
      }
    });
    tokens.split = tiles;
    tokens.split_sums = scratch.split_sums.get<float>(panels * split_sums_floats(count));
    return tokens;
  }
  tokens.grouped_x = tokens.x;
  tokens.grouped_q = reinterpret_cast<const int32_t*>(q);
  const bool integers = quantized && count < kernels.of[static_cast<size_t>(format)].wide_tokens,
             digits = integers && kernels.digits;
  if (count > 1 || digits) {
    const size_t group = group_size(count, integers ? kernels.int_group : kernels.float_group);
    const size_t length = integers ? stride / 2 : stride;  // 32-bit elements of a token
    int32_t* grouped = scratch.grouped.get<int32_t>(count * length);
    const int32_t* in = integers ? tokens.grouped_q : reinterpret_cast<const int32_t*>(tokens.x);
    parallel_for(parallel, (count + group - 1) / group, [&](size_t g) {
      const size_t first = g * group;
      const size_t together = std::min(group, count - first);
      side_by_side(in + first * length, together, length, length, grouped + first * length);
      if (digits) split_digits(grouped + first * length, together, length, fields(format));
    });
    tokens.grouped_q = grouped;
    tokens.grouped_x = reinterpret_cast<const float*>(grouped);
  }
  return tokens;
}

namespace {

// exp(x) for x in [-104, 140]: 0 and Inf beyond what a float holds. Cephes' expf: x = n ln2 + r, a polynomial in r.
// Branch-free and without calls, so that compilers vectorize the loop around it.
inline float exp_clamped(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const int32_t exponent = bits - 0x4b400000;  // n
  const int32_t half = exponent >> 1;          // two factors: 2^n itself may be no normal float
  const int32_t first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
  float first, second;
  std::memcpy(&first, &first_bits, 4);
  std::memcpy(&second, &second_bits, 4);
  return p * first * second;
}

}  // namespace

void silu(float* z, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float low = -z[i] > -104.0f ? -z[i] : -104.0f;  // a NaN: the product below keeps it
    z[i] = z[i] / (1.0f + exp_clamped(low < 140.0f ? low : 140.0f));
  }
}

size_t compact_magnitude(const float* z, size_t count, float threshold, int32_t* active, float* a) {
  size_t found = 0;
  for (size_t k = 0; k < count; ++k) {
    active[found] = static_cast<int32_t>(k);
    a[found] = z[k];
    found += !(std::fabs(z[k]) <= threshold);
  }
  return found;
}

void stream_all(const Kernels& kernels, const Panels& w, size_t first, size_t last, const Tokens& x,
                const Scratch& scratch, float* z, size_t z_stride) {
  const size_t format = static_cast<size_t>(w.format);
  kernels.of[format].stream(w, first, last, x, z, z_stride);
  for (size_t t = 0; t < x.count; ++t) {
    if (!scratch.is_odd[t].load(std::memory_order_relaxed) || scratch.is_nan[t]) continue;
    (is_quantized(w.format) ? kScalarKernels : kernels)
        .of[format]
        .stream(w, first, last, one_of(x, t), z + t * z_stride, z_stride);
  }
}

}  // namespace prosparse
