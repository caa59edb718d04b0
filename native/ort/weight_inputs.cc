#include "weight_inputs.h"

#include <cstring>

#include "tensor.h"

namespace prosparse::ort {
namespace {

std::vector<std::string> matrix_names(Kind kind) {
  if (kind == Kind::kGated) return {"_gate", "_up", "_down"};
  if (kind == Kind::kUngated) return {"_up", "_down"};
  return {""};
}

size_t inputs_per_matrix(const Operator& op) { return is_quantized(op.format) ? 3 : 2; }

Format format_of(const Operator& op, size_t matrix) {
  return matrix + 1 == matrix_names(op.kind).size() ? op.down : op.format;
}

// Whether a stored element is a byte of several weights.
bool is_packed(Format format) { return element_bits(format) < 8; }

// Elements of a stored row.
int64_t stored_elements(Format format, int64_t columns) {
  const size_t stored = static_cast<size_t>(columns);
  return static_cast<int64_t>(is_packed(format) ? stored_row_bytes(format, stored) : stored);
}

Tensor constant_input(const Operator& op, const Api& api, const KernelInfo* info, size_t index,
                      const std::string& what) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant || value == nullptr) throw InvalidArgument(what + ": expected an initializer, got a computed value");
  return read_tensor(api, value, input_type(op, index), what);
}

void expect_shape(const Tensor& tensor, const std::vector<int64_t>& expected, const std::string& what,
                  const std::string& beside) {
  if (tensor.shape == expected) return;
  throw InvalidArgument(what + ": expected shape " + to_string(expected) + " to go with " + beside + ", got " +
                        to_string(tensor.shape));
}

// Throws if a float16 among `scales`, [rows, groups], is NaN or infinite: its exponent is all ones.
void expect_finite(const Tensor& scales, const std::string& what) {
  const size_t groups = static_cast<size_t>(scales.shape[1]), count = static_cast<size_t>(scales.shape[0]) * groups;
  const char* const data = static_cast<const char*>(scales.data);
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
    if ((bits & 0x7C00) != 0x7C00) continue;
    throw InvalidArgument(what + ": expected finite scales, got " + ((bits & 0x3FF) != 0 ? "NaN" : "infinity") +
                          " in row " + std::to_string(i / groups) + ", group " + std::to_string(i % groups));
  }
}

// The node whose inputs are read.
struct Node {
  const Operator& op;
  const Api& api;
  const KernelInfo* info;
  const std::string& where;

  Tensor input(size_t index, const std::string& name) const {
    return constant_input(op, api, info, index, where + ": " + name);
  }
};

// What the other shapes have to agree with.
std::string beside(const std::vector<std::string>& names, const Tensor& first) {
  return "w" + names[0] + " " + to_string(first.shape);
}

// The first matrix, [rows, columns as stored]; its rows are whole groups where the format pads them.
Tensor read_first(const Node& node, const std::vector<std::string>& names) {
  const Tensor w = node.input(1, "w" + names[0]);
  const std::string what = node.where + ": w" + names[0];
  if (w.shape.size() != 2 || w.shape[0] < 1 || w.shape[1] < 1) {
    const char* const expected = node.op.kind == Kind::kLinear ? "[d_out, d_in]" : "[d_ff, d_model]";
    throw InvalidArgument(what + ": expected shape " + expected + ", got " + to_string(w.shape));
  }
  const int64_t group_bytes = static_cast<int64_t>(stored_row_bytes(node.op.format, 1));
  if (is_packed(node.op.format) && w.shape[1] % group_bytes != 0) {
    throw InvalidArgument(what + ": expected rows of whole groups of " + std::to_string(group_bytes) + " bytes, got " +
                          to_string(w.shape));
  }
  return w;
}

// The number of columns. Formats of several weights per byte store whole groups, so that it follows from down_proj's
// bias, [d_model]. A Linear has no such input: its rows end with a group.
int64_t read_columns(const Node& node, const std::vector<std::string>& names, const Tensor& first) {
  const Format format = node.op.format;
  if (!is_packed(format)) return first.shape[1];
  if (node.op.kind == Kind::kLinear) return first.shape[1] * static_cast<int64_t>(8 / element_bits(format));
  const Tensor b = node.input(names.size() * inputs_per_matrix(node.op), "b_down");
  if (b.shape.size() != 1 || b.shape[0] < 1 || stored_elements(format, b.shape[0]) != first.shape[1]) {
    throw InvalidArgument(node.where + ": b_down: expected shape [d_model] to go with " + beside(names, first) +
                          ", got " + to_string(b.shape));
  }
  return b.shape[0];
}

Weight read_matrix(const Node& node, const std::vector<std::string>& names, size_t m, const Tensor& first,
                   int64_t columns) {
  const size_t step = inputs_per_matrix(node.op), at = 1 + m * step;
  const Format format = format_of(node.op, m);
  const int64_t rows = first.shape[0];
  const auto expect = [&](const Tensor& tensor, const std::vector<int64_t>& shape, const char* letter) {
    expect_shape(tensor, shape, node.where + ": " + letter + names[m], beside(names, first));
  };
  const Tensor w = node.input(at, "w" + names[m]);
  expect(w, {rows, stored_elements(format, columns)}, "w");
  Weight weight{{format, w.data, nullptr, static_cast<size_t>(rows), static_cast<size_t>(columns)}, nullptr};
  if (is_quantized(format)) {
    const Tensor s = node.input(at + 1, "s" + names[m]);
    expect(s, {rows, static_cast<int64_t>(groups_of(weight.matrix.cols))}, "s");
    expect_finite(s, node.where + ": s" + names[m]);
    weight.matrix.scales = s.data;
  }
  const Tensor b = node.input(at + step - 1, "b" + names[m]);
  const bool is_down = node.op.kind != Kind::kLinear && m + 1 == names.size();
  expect(b, {is_down ? columns : rows}, "b");
  weight.bias = b.data;
  return weight;
}

}  // namespace

size_t input_count(const Operator& op) { return 1 + matrix_names(op.kind).size() * inputs_per_matrix(op); }

ElementType input_type(const Operator& op, size_t index) {
  if (index == 0) return kFloat;
  const size_t step = inputs_per_matrix(op), matrix = (index - 1) / step, place = (index - 1) % step;
  if (place == 0) return static_cast<ElementType>(spec(format_of(op, matrix)).onnx_type);
  return place + 1 == step ? kFloat : kFloat16;
}

std::vector<Weight> read_weights(const Operator& op, const Api& api, const KernelInfo* info, const std::string& where) {
  const Node node{op, api, info, where};
  const std::vector<std::string> names = matrix_names(op.kind);
  const Tensor first = read_first(node, names);
  const int64_t columns = read_columns(node, names, first);
  std::vector<Weight> weights;
  for (size_t m = 0; m < names.size(); ++m) weights.push_back(read_matrix(node, names, m, first, columns));
  return weights;
}

}  // namespace prosparse::ort
