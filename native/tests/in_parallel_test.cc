// Packing when threads run out of memory, or when the system grants none: all of it, or std::bad_alloc; never the end.
#include <pthread.h>

#include <system_error>

#include "failing_memory.h"
#include "matrices.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

struct Packed {
  Arena arena;
  Panels panels;
  Rows dot, lane, axpy;
  Packed(const Stored& w, const std::vector<float>& bias, unsigned threads)
      : arena(panels_bytes(w.matrix) + 3 * rows_bytes(w.matrix)),
        panels(pack_panels(w.matrix, bias.data(), arena, threads)),
        dot(pack_rows(w.matrix, bias.data(), RowOrder::kDot, arena, threads)),
        lane(pack_rows(w.matrix, bias.data(), RowOrder::kLane, arena, threads)),
        axpy(pack_rows(w.matrix, bias.data(), RowOrder::kAxpy, arena, threads)) {}
};

void expect_packed(const Stored& w, const Packed& packed) {
  for (size_t r = 0; r < w.matrix.rows; ++r) {
    for (size_t c = 0; c < w.matrix.cols; ++c) {
      ++cases;
      CHECK(panel_weight(packed.panels, r, c) == w.at(r, c) &&
                row_weight(packed.dot, RowOrder::kDot, r, c) == w.at(r, c) &&
                row_weight(packed.lane, RowOrder::kLane, r, c) == w.at(r, c) &&
                row_weight(packed.axpy, RowOrder::kAxpy, r, c) == w.at(r, c),
            "row %zu column %zu is packed wrongly", r, c);
    }
  }
}

// Memory runs out in the threads that pack alone, or in the one that starts them.
void test_threads(Format format) {
  std::mt19937 rng(2);
  const Stored w(format, 90, 545, rng);
  const std::vector<float> bias(545, 0.0f);
  bool thrown = false;
  fail(Where::kElsewhere, 0, false);
  try {
    const Packed packed(w, bias, 4);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  where = Where::kNowhere;
  CHECK(thrown && failed > 0, "memory failed %ld times elsewhere and nobody says so", failed.load());
  size_t failed_runs = 0, managed = 0;
  for (long after = 0;; ++after) {
    fail(Where::kHere, after, true);
    try {
      const Packed packed(w, bias, 4);
      where = Where::kNowhere;
      expect_packed(w, packed);
      ++managed;
    } catch (const std::bad_alloc&) {
      where = Where::kNowhere;
      ++failed_runs;
    }
    if (failed == 0) break;
  }
  CHECK(failed_runs > 0 && managed > 3, "%zu failed, %zu managed with fewer threads", failed_runs, managed);
}

// The system grants no threads: the caller's does all the work.
void test_no_threads(Format format) {
#if defined(__GLIBC__)
  pthread_attr_t usual, huge;
  pthread_getattr_default_np(&usual);
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, size_t{1} << 50);
  pthread_setattr_default_np(&huge);
  bool started = false;
  try {
    std::thread([&] { started = true; }).join();
  } catch (const std::system_error&) {
  }
  CHECK(!started, "a thread had 2^50 bytes of stack");
  std::mt19937 rng(3);
  const Stored w(format, 90, 545, rng);
  const std::vector<float> bias(545, 0.0f);
  expect_packed(w, Packed(w, bias, 4));
  pthread_setattr_default_np(&usual);
#else
  (void)format;  // test_threads makes std::thread fail here too, by its memory
#endif
}

}  // namespace

int main() {
  for (const Format format : {Format::kI8, Format::kI4}) test_threads(format);  // float formats allocate in no thread
  for (const Format format : kAllFormats) test_no_threads(format);
  return report(cases);
}
