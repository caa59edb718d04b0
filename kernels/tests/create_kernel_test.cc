// What onnxruntime is told when a session is made and memory or threads run out, or a type is not the operator's.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "../ort/custom_op.h"
#include "../ort/status.h"
#include "matrices.h"

namespace {

// Which calls of operator new fail: from the one that is `left` away, or that one alone; everywhere, here or elsewhere.
enum class Where { kNowhere, kHere, kElsewhere, kEverywhere };
std::atomic<Where> where{Where::kNowhere};
std::atomic<bool> once{false};
std::atomic<long> left{0};
std::atomic<long> failed{0};
const std::thread::id here = std::this_thread::get_id();

void fail(Where place, long after, bool only_once) {
  left = after;
  once = only_once;
  failed = 0;
  where = place;
}

bool may_allocate() {
  const Where place = where;
  if (place == Where::kNowhere) return true;
  if (place != Where::kEverywhere && (place == Where::kHere) != (std::this_thread::get_id() == here)) return true;
  const long now = left--;
  if (now > 0 || (now < 0 && once)) return true;
  ++failed;
  return false;
}

}  // namespace

// Not inline: gcc takes malloc and a delete expression that it sees beside each other for a mistake.
__attribute__((noinline)) void* operator new(size_t size) {
  void* memory = may_allocate() ? std::malloc(size != 0 ? size : 1) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

// A stand-in for onnxruntime, as far as one node's creation needs it.
namespace prosparse::ort {

struct Status {
  ErrorCode code;
  std::string text;
};
struct TensorInfo {
  ElementType type;
  std::vector<int64_t> shape;
};
struct Value {
  TensorInfo info;
  void* data;
};
struct KernelInfo {
  std::vector<Value> inputs;  // that of x is never asked for
};

}  // namespace prosparse::ort

using namespace prosparse;
using namespace prosparse::ort;
using namespace prosparse::testing;

namespace {

size_t cases = 0;

Api stand_in() {
  Api api{};
  api.CreateStatus = [](ErrorCode code, const char* text) {
    where = Where::kNowhere;  // onnxruntime's own memory is not what fails here
    return new Status{code, text};
  };
  api.ReleaseStatus = [](Status* status) { delete status; };
  api.KernelInfo_GetNodeName = [](const KernelInfo*, char* name, size_t* size) -> Status* {
    std::snprintf(name, *size, "layer 3");
    return nullptr;
  };
  api.KernelInfoGetAttribute_string = [](const KernelInfo*, const char*, char* value, size_t* size) -> Status* {
    std::snprintf(value, *size, "relu");
    return nullptr;
  };
  api.KernelInfoGetAttribute_float = [](const KernelInfo*, const char*, float* value) -> Status* {
    *value = 0.0f;
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const KernelInfo* info, size_t index, int* is_constant, const Value** value) -> Status* {
    *is_constant = 1;
    *value = &info->inputs[index];
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const Value* value, TensorInfo** info) -> Status* {
    *info = const_cast<TensorInfo*>(&value->info);
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](TensorInfo*) {};
  api.GetTensorElementType = [](const TensorInfo* info, ElementType* type) -> Status* {
    *type = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const TensorInfo* info, size_t* count) -> Status* {
    *count = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const TensorInfo* info, int64_t* shape, size_t count) -> Status* {
    std::copy_n(info->shape.begin(), count, shape);
    return nullptr;
  };
  api.GetTensorMutableData = [](Value* value, void** data) -> Status* {
    *data = value->data;
    return nullptr;
  };
  return api;
}

const Api api = stand_in();

const CustomOp& find(const std::string& name) {
  const CustomOp* const* op = custom_ops();
  while (op[0]->GetName(op[0]) != name) ++op;  // custom_ops() ends with a null: a wrong name crashes
  return **op;
}

// The status's text, one line; "" where the kernel was made.
std::string create(const CustomOp& op, const KernelInfo& info) {
  void* kernel = nullptr;
  Status* status = op.CreateKernelV2(&op, &api, &info, &kernel);
  where = Where::kNowhere;
  CHECK((status == nullptr) == (kernel != nullptr), "neither a kernel nor a status, or both");
  if (status == nullptr) {
    op.KernelDestroy(kernel);
    return "";
  }
  const std::string text = status->text;
  api.ReleaseStatus(status);
  ++cases;
  CHECK(text.find('\n') == std::string::npos, "more than one line: %s", text.c_str());
  return text;
}

// Every allocation that a node's creation makes fails once, alone or with all that follow.
void test_every_allocation(Format format, const char* name, ElementType type) {
  std::mt19937 rng(1);
  const int64_t d_ff = 70, d_model = 50;
  Stored matrix(format, d_ff, d_model, rng);
  std::vector<float> biases(d_ff, 0.5f);
  const int64_t columns = static_cast<int64_t>(matrix.data.size()) / d_ff;
  KernelInfo info{{{{kFloat, {}}, nullptr}}};
  for (const int64_t bias : {d_ff, d_ff, d_model}) {
    info.inputs.push_back({{type, {d_ff, is_quantised(format) ? columns : d_model}}, matrix.data.data()});
    if (is_quantised(format)) info.inputs.push_back({{kFloat16, {d_ff, 2}}, matrix.scales.data()});
    info.inputs.push_back({{kFloat, {bias}}, biases.data()});
  }
  const CustomOp& op = find(name);
  CHECK(create(op, info).empty(), "%s: not made", name);
  for (const bool only_once : {true, false}) {
    size_t refused = 0, named = 0;
    for (long after = 0;; ++after) {
      fail(Where::kEverywhere, after, only_once);
      const std::string text = create(op, info);
      if (failed == 0) break;
      if (text.empty()) continue;  // a thread less
      const bool is_named = text == std::string(name) + " node 'layer 3': weights: expected 1 MiB of memory, got less";
      CHECK(is_named || text == "com.prosparse: out of memory", "%s", text.c_str());
      ++refused;
      named += is_named;
    }
    CHECK(refused > 10 && (named > 3 || !only_once), "%s: %zu allocations failed, %zu of them while packing", name, refused, named);
  }
  CHECK(create(op, info).empty(), "%s: not made after failures", name);
}

void test_too_large() {
  const int64_t size = int64_t{1} << 24;  // 2^50 bytes: more than any address space has
  float one = 1.0f;
  const KernelInfo info{{{{kFloat, {}}, nullptr}, {{kFloat, {size, size}}, &one}, {{kFloat, {size}}, &one}}};
  const std::string text = create(find("LinearF32"), info);
  CHECK(text == "LinearF32 node 'layer 3': weights: expected 1073741889 MiB of memory, got less", "%s", text.c_str());
}

// onnxruntime compares types with the operator's declaration before it makes a kernel; here nobody does.
void test_type() {
  float one = 1.0f;
  const KernelInfo info{{{{kFloat, {}}, nullptr}, {{kFloat, {1, 1}}, &one}, {{kFloat, {1}}, &one}}};
  const std::string text = create(find("LinearBF16"), info);
  CHECK(text == "LinearBF16 node 'layer 3': w: expected bfloat16, got float32", "%s", text.c_str());
}

struct Packed {
  Arena arena;
  Panels panels;
  Rows dot, axpy;
  Packed(const Stored& w, const std::vector<float>& bias, unsigned threads)
      : arena(panels_bytes(w.matrix) + 2 * rows_bytes(w.matrix)), panels(pack_panels(w.matrix, bias.data(), arena, threads)),
        dot(pack_rows(w.matrix, bias.data(), RowOrder::kDot, arena, threads)),
        axpy(pack_rows(w.matrix, bias.data(), RowOrder::kAxpy, arena, threads)) {}
};

void expect_packed(const Stored& w, const Packed& packed) {
  for (size_t r = 0; r < w.matrix.rows; ++r) {
    for (size_t c = 0; c < w.matrix.cols; ++c) {
      ++cases;
      CHECK(panel_weight(packed.panels, r, c) == w.at(r, c) && row_weight(packed.dot, RowOrder::kDot, r, c) == w.at(r, c) &&
                row_weight(packed.axpy, RowOrder::kAxpy, r, c) == w.at(r, c),
            "row %zu column %zu is packed wrongly", r, c);
    }
  }
}

// Memory runs out in the threads that pack alone, or in the one that starts them.
void test_threads(Format format) {
  std::mt19937 rng(2);
  const Stored w(format, 90, 70, rng);
  const std::vector<float> bias(128, 0.0f);
  bool thrown = false;
  fail(Where::kElsewhere, 0, false);
  try {
    const Packed packed(w, bias, 4);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  where = Where::kNowhere;
  CHECK(thrown && failed > 0, "memory failed %ld times elsewhere and nobody says so", failed.load());
  size_t refused = 0, managed = 0;
  for (long after = 0;; ++after) {
    fail(Where::kHere, after, true);
    try {
      const Packed packed(w, bias, 4);
      where = Where::kNowhere;
      expect_packed(w, packed);
      ++managed;
    } catch (const std::bad_alloc&) {
      where = Where::kNowhere;
      ++refused;
    }
    if (failed == 0) break;
  }
  CHECK(refused > 0 && managed > 3, "%zu refused, %zu managed with fewer threads", refused, managed);
}

// The system refuses threads: the caller's does all the work.
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
  const Stored w(format, 90, 70, rng);
  const std::vector<float> bias(128, 0.0f);
  expect_packed(w, Packed(w, bias, 4));
  pthread_setattr_default_np(&usual);
#else
  (void)format;  // test_threads makes std::thread fail here too, by its memory
#endif
}

}  // namespace

int main() {
  test_every_allocation(Format::kF32, "SparseGatedFFNF32", kFloat);
  test_every_allocation(Format::kI8, "SparseGatedFFNI8", kInt8);
  test_every_allocation(Format::kI4, "SparseGatedFFNI4", kUint8);
  test_too_large();
  test_type();
  for (const Format format : {Format::kI8, Format::kI4}) test_threads(format);
  for (const Format format : kAllFormats) test_no_threads(format);
  return report(cases);
}
