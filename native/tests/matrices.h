// Random matrices in every format, and what they mean in double precision: decoded here, not by the library.
#ifndef PROSPARSE_TESTS_MATRICES_H_
#define PROSPARSE_TESTS_MATRICES_H_

#include <algorithm>

#include "check.h"
#include "pack.h"
#include "packed_weight.h"

namespace prosparse::testing {

constexpr Format kAllFormats[] = {Format::kF32, Format::kF16, Format::kBF16, Format::kI8, Format::kI4, Format::kNL4};
constexpr const char* kFormatNames[] = {"F32", "F16", "BF16", "I8", "I4", "NL4"};

struct FfnFormat {  // of an FFN's matrices
  Format format, down;
  bool mixed() const { return down != format; }
  const char* name() const {
    return mixed() ? (format == Format::kI4 ? "I4I8" : "NL4I8") : kFormatNames[static_cast<size_t>(format)];
  }
};
constexpr FfnFormat kFfnFormats[] = {{Format::kF32, Format::kF32},   {Format::kF16, Format::kF16},
                                     {Format::kBF16, Format::kBF16}, {Format::kI8, Format::kI8},
                                     {Format::kI4, Format::kI4},     {Format::kI4, Format::kI8},
                                     {Format::kNL4, Format::kNL4},   {Format::kNL4, Format::kI8}};

// What NL4's codes stand for, as docs/reference/operators.md lists them.
constexpr int kNonlinear[16] = {-64, -50, -40, -31, -24, -17, -11, -5, 0, 7, 13, 20, 28, 36, 47, 62};

struct Stored {
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
  std::vector<double> values;    // [rows, cols]
  std::vector<double> integers;  // |integer| of quantized formats, else 0
  Matrix matrix;

  double at(size_t r, size_t c) const { return values[r * matrix.cols + c]; }
  double scale(size_t r, size_t c) const { return half(scales[r * groups_of(matrix.cols) + c / 32]); }
  static double half(uint16_t h) {  // normal numbers only
    return std::ldexp(1024 + (h & 1023), (h >> 10 & 31) - 25) * (h & 0x8000 ? -1 : 1);
  }

  Stored(Format format, size_t rows, size_t cols, std::mt19937& rng) : values(rows * cols), integers(rows * cols) {
    const size_t groups = groups_of(cols);
    data.resize(element_bits(format) == 4 ? rows * groups * 16 : rows * cols * element_bits(format) / 8);
    scales.resize(is_quantized(format) ? rows * groups : 0);
    for (uint16_t& s : scales) s = static_cast<uint16_t>(0x2000 | (rng() & 0x8fff));  // 2^-7 to 2^-3, either sign
    std::normal_distribution<float> normal;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < cols; ++c) {
        const size_t i = r * cols + c;
        if (format == Format::kF32) {
          const float v = normal(rng);
          std::memcpy(&data[4 * i], &v, 4);
          values[i] = v;
        } else if (format == Format::kF16 || format == Format::kBF16) {
          // Exponents around 1, any sign and significand.
          const uint16_t h =
              static_cast<uint16_t>(format == Format::kF16 ? 0x3400 | (rng() & 0x8bff) : 0x3e80 | (rng() & 0x80ff));
          std::memcpy(&data[2 * i], &h, 2);
          values[i] = format == Format::kF16
                          ? half(h)
                          : std::ldexp(128 + (h & 127), (h >> 7 & 255) - 134) * (h & 0x8000 ? -1 : 1);
        } else {
          const int q = format == Format::kI8 ? static_cast<int>(rng() % 256) - 128 : static_cast<int>(rng() % 16) - 8;
          if (format == Format::kI8) {
            data[i] = static_cast<uint8_t>(static_cast<int8_t>(q));
          } else {
            uint8_t& byte = data[r * groups * 16 + c / 2];
            byte = static_cast<uint8_t>(c % 2 == 0 ? (byte & 0xf0) | (q + 8) : (byte & 0x0f) | (q + 8) << 4);
          }
          const int integer = format == Format::kNL4 ? kNonlinear[q + 8] : q;
          integers[i] = std::abs(integer);
          values[i] = half(scales[r * groups + c / 32]) * integer;
        }
      }
    }
    if (element_bits(format) == 4 && cols % 32 != 0) {  // padding may have any value
      for (size_t r = 0; r < rows; ++r) {
        for (size_t byte = (cols + 1) / 2; byte < groups * 16; ++byte)
          data[r * groups * 16 + byte] = static_cast<uint8_t>(rng());
      }
    }
    matrix = {format, data.data(), scales.empty() ? nullptr : scales.data(), rows, cols};
  }

  // Quantized formats: gives every weight the first code or the last.
  void use_one_code(bool last) {
    const bool bytes = matrix.format == Format::kI8, nonlinear = matrix.format == Format::kNL4;
    const int integer = bytes ? (last ? 127 : -128) : nonlinear ? kNonlinear[last ? 15 : 0] : (last ? 7 : -8);
    std::fill(data.begin(), data.end(), static_cast<uint8_t>(bytes ? integer : last ? 0xff : 0));
    for (size_t i = 0; i < values.size(); ++i) {
      integers[i] = std::abs(integer);
      values[i] = scale(i / matrix.cols, i % matrix.cols) * integer;
    }
  }
};

// Makes every weight of a row NaN (`which` 0), +Inf (1) or -Inf (2); of quantized formats every scale.
inline void poison_row(Stored& w, size_t row, size_t which) {
  const Format format = w.matrix.format;
  const uint32_t f32[] = {0x7fc00000, 0x7f800000, 0xff800000};
  const uint16_t f16[] = {0x7e00, 0x7c00, 0xfc00}, bf16[] = {0x7fc0, 0x7f80, 0xff80};
  if (is_quantized(format)) {
    const size_t groups = groups_of(w.matrix.cols);
    std::fill_n(w.scales.begin() + static_cast<std::ptrdiff_t>(row * groups), groups, f16[which]);
    return;
  }
  for (size_t i = row * w.matrix.cols; i < (row + 1) * w.matrix.cols; ++i) {
    if (format == Format::kF32) {
      std::memcpy(&w.data[4 * i], &f32[which], 4);
    } else {
      std::memcpy(&w.data[2 * i], format == Format::kF16 ? &f16[which] : &bf16[which], 2);
    }
  }
}

// Half a rounding step of 16 bits for each column of x: 0 for float formats and for the reference.
inline std::vector<double> half_steps(const float* x, size_t cols, bool rounds) {
  std::vector<double> steps(cols, 0.0);
  for (size_t c = 0; rounds && c < cols; ++c) {
    double largest = 1e-30;
    for (size_t i = c / 32 * 32; i < std::min(cols, c / 32 * 32 + 32); ++i)
      largest = std::max(largest, std::abs(static_cast<double>(x[i])));
    steps[c] = 0.51 * largest / kSteps;  // 0.5, and three roundings of the quotient, each 2^-24 of kSteps
  }
  return steps;
}

// What accuracy level 4 allows for each of `count` activations, relative to the weight: half a step of 8 bits of its
// group, and weights rounded to bfloat16.
template <class Real>
std::vector<double> level_4_errors(const Real* x, size_t count) {
  std::vector<double> errors(count);
  for (size_t c = 0; c < count; ++c) {
    double largest = 0.0;
    for (size_t i = c / 32 * 32; i < std::min(count, c / 32 * 32 + 32); ++i)
      largest = std::max(largest, std::abs(static_cast<double>(x[i])));
    errors[c] = 1.00001 * largest / 254 * (1 + 0x1p-8) + 0x1p-8 * std::abs(static_cast<double>(x[c]));
  }
  return errors;
}

// Sum of w[row] * x with a bound on how far a kernel may be from it.
inline double row_sum(const Stored& w, size_t row, const float* x, double bias, bool rounds, double* bound,
                      bool level_4 = false) {
  std::vector<double> steps = half_steps(x, w.matrix.cols, rounds);
  if (level_4) {
    const std::vector<double> more = level_4_errors(x, w.matrix.cols);
    for (size_t c = 0; c < steps.size(); ++c) steps[c] += more[c];
  }
  double sum = bias, magnitude = std::abs(bias), rounding = 0.0;
  for (size_t c = 0; c < w.matrix.cols; ++c) {
    sum += w.at(row, c) * x[c];
    magnitude += std::abs(w.at(row, c)) * (std::abs(static_cast<double>(x[c])) + steps[c]);
    rounding += std::abs(w.at(row, c)) * steps[c];
  }
  *bound = gamma_bound(w.matrix.cols + 6) * magnitude + rounding;
  return sum;
}

inline void run_serially(void*, size_t count, void (*task)(void*, size_t), void* argument) {
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_MATRICES_H_
