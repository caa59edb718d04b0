// Matrices beyond 2^31 bytes: a row near the end of each, read where it is. Takes 3 GB of memory.
#include <cstdlib>
#include <memory>

#include "activations.h"
#include "check.h"
#include "pack.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

// Small integers, so that every sum is exact: w[row][c] = c % 5 - 2 in one row, 0 in all others.
void test_rows(const Kernels& k, Format format) {
  const size_t cols = 8192, bytes = element_bits(format) / 8;
  const size_t rows = (size_t{1} << 31) / (cols * bytes) + 40, row = rows - 3, blocks = cols / kQuantBlock;
  const std::unique_ptr<void, void (*)(void*)> data(std::calloc(rows * cols, bytes), std::free);  // untouched pages take no memory
  const std::unique_ptr<void, void (*)(void*)> scales(std::calloc(rows * blocks, 2), std::free);
  CHECK(data != nullptr && scales != nullptr, "no memory");
  double sum = 0.0;
  for (size_t c = 0; c < cols; ++c) {
    const float value = static_cast<float>(c % 5) - 2.0f;
    sum += static_cast<double>(value) * value;
    if (format == Format::kF32) {
      static_cast<float*>(data.get())[row * cols + c] = value;
    } else {
      static_cast<int8_t*>(data.get())[row * cols + c] = static_cast<int8_t>(value);
      static_cast<uint16_t*>(scales.get())[row * blocks + c / kQuantBlock] = 0x3c00;  // 1
    }
  }
  const Matrix matrix{format, data.get(), is_quantised(format) ? scales.get() : nullptr, rows, cols};
  const std::vector<float> bias(std::max(rows, cols), 0.0f);
  std::vector<float> x(cols);
  for (size_t c = 0; c < cols; ++c) x[c] = static_cast<float>(c % 5) - 2.0f;
  const FormatKernels& run = k.of[static_cast<size_t>(format)];
  Scratch scratch;
  const Parallel serial{[](void*, size_t count, void (*task)(void*, size_t), void* argument) {
    for (size_t i = 0; i < count; ++i) task(argument, i);
  }, nullptr};
  const Tokens tokens = prepare(k, format, x.data(), 1, cols, serial, scratch);
  const double bound = is_quantised(format) ? sum * 4 / kSteps : sum * 0x1p-20;
  const int32_t active[] = {static_cast<int32_t>(row)};
  {
    Arena arena(panels_bytes(matrix));
    const Panels panels = pack_panels(matrix, bias.data(), arena, 2);
    std::vector<float> z(panels.count() * kLanes, NAN);
    run.stream(panels, panels.count() - 2, panels.count(), tokens, z.data(), 0);
    ++cases;
    CHECK(std::abs(z[row] - sum) <= bound && z[row - 1] == 0.0f, "%s stream: expected %g, got %g", k.isa, sum, static_cast<double>(z[row]));
  }
  for (const RowOrder order : {RowOrder::kDot, RowOrder::kAxpy}) {
    Arena arena(rows_bytes(matrix));
    const Rows packed = pack_rows(matrix, bias.data(), order, arena, 2);
    ++cases;
    if (order == RowOrder::kDot) {
      float u = NAN;
      run.dot(packed, tokens, 0, active, 1, 0, cols, true, &u);
      CHECK(std::abs(u - sum) <= bound, "%s dot: expected %g, got %g", k.isa, sum, static_cast<double>(u));
      continue;
    }
    std::vector<float> y(cols, 0.0f);
    const float h = 3.0f;
    run.axpy(packed, active, &h, 1, 0, cols, true, y.data(), scratch.work.get<uint8_t>(axpy_work(cols)));
    for (size_t c = 0; c < cols; ++c) CHECK(std::abs(y[c] - 3 * x[c]) <= 24 / kSteps, "%s axpy: expected %g, got %g", k.isa, static_cast<double>(3 * x[c]), static_cast<double>(y[c]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels* k = variants_to_test(argc, argv).front();  // the best: offsets are the same code in all
  for (const Format format : {Format::kF32, Format::kI8}) test_rows(*k, format);
  return report(cases);
}
