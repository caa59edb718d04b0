#include "weight_inputs.h"

#include <cstring>

#include "tensor.h"

namespace prosparse::ort {
namespace {

std::vector<std::string> matrix_names(Kind kind) {
  if (kind == Kind::kGated) return {"_gate", "_up", "_down"};
  if (kind == Kind::kPlain) return {"_up", "_down"};
  return {""};
}

size_t inputs_per_matrix(const Operator& op) { return is_quantized(op.format) ? 3 : 2; }

Format format_of(const Operator& op, size_t matrix) {
  return matrix + 1 == matrix_names(op.kind).size() ? op.down : op.format;
}

ElementType weight_type(Format format) {
  switch (format) {
    case Format::kF32: return kFloat;
    case Format::kF16: return kFloat16;
    case Format::kBF16: return kBFloat16;
    case Format::kI8: return kInt8;
    case Format::kI4: return kUint8;
  }
  return kUndefined;
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

// Throws if a float16 among `scales`, [rows, blocks], is NaN or infinite: its exponent is all ones.
void expect_finite(const Tensor& scales, const std::string& what) {
  const size_t blocks = static_cast<size_t>(scales.shape[1]), count = static_cast<size_t>(scales.shape[0]) * blocks;
  const char* const data = static_cast<const char*>(scales.data);
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
    if ((bits & 0x7C00) != 0x7C00) continue;
    throw InvalidArgument(what + ": expected finite scales, got " + ((bits & 0x3FF) != 0 ? "NaN" : "infinity") +
                          " in row " + std::to_string(i / blocks) + ", block " + std::to_string(i % blocks));
  }
}

}  // namespace

size_t input_count(const Operator& op) { return 1 + matrix_names(op.kind).size() * inputs_per_matrix(op); }

ElementType input_type(const Operator& op, size_t index) {
  if (index == 0) return kFloat;
  const size_t step = inputs_per_matrix(op), matrix = (index - 1) / step, place = (index - 1) % step;
  if (place == 0) return weight_type(format_of(op, matrix));
  return place + 1 == step ? kFloat : kFloat16;
}

std::vector<Weight> read_weights(const Operator& op, const Api& api, const KernelInfo* info, const std::string& where) {
  const std::vector<std::string> names = matrix_names(op.kind);
  const size_t step = inputs_per_matrix(op);
  const bool is_linear = op.kind == Kind::kLinear;
  const char* const shape_text = is_linear ? "[d_out, d_in]" : "[d_ff, d_model]";
  std::vector<Weight> weights;
  std::vector<int64_t> shape;  // [rows, columns] as stored, of the first: for I4, columns are bytes
  std::string beside;          // what the other shapes have to agree with
  // An I4 matrix has whole blocks only, so its number of columns is known from a bias: down_proj's, of [d_model].
  // A Linear's is not; its rows end with a block.
  int64_t columns = 0;
  for (size_t m = 0; m < names.size(); ++m) {
    const size_t first = 1 + m * step;
    const Format format = format_of(op, m);
    const Tensor w = constant_input(op, api, info, first, where + ": w" + names[m]);
    if (m == 0) {
      if (w.shape.size() != 2 || w.shape[0] < 1 || w.shape[1] < 1) {
        throw InvalidArgument(where + ": w" + names[m] + ": expected shape " + shape_text + ", got " +
                              to_string(w.shape));
      }
      shape = w.shape;
      beside = "w" + names[0] + " " + to_string(shape);
      columns = shape[1];
      if (format == Format::kI4) {
        if (shape[1] % 16 != 0) {
          throw InvalidArgument(where + ": w" + names[m] + ": expected rows of whole blocks of 16 bytes, got " +
                                to_string(shape));
        }
        columns = shape[1] * 2;
        if (!is_linear) {
          const size_t last = names.size() * step;
          const Tensor b = constant_input(op, api, info, last, where + ": b_down");
          if (b.shape.size() != 1 || b.shape[0] < 1 ||
              blocks_of(static_cast<size_t>(b.shape[0])) * 16 != static_cast<size_t>(shape[1])) {
            throw InvalidArgument(where + ": b_down: expected shape [d_model] to go with " + beside + ", got " +
                                  to_string(b.shape));
          }
          columns = b.shape[0];
        }
      }
    }
    const int64_t stored =
        format == Format::kI4 ? static_cast<int64_t>(blocks_of(static_cast<size_t>(columns)) * 16) : columns;
    expect_shape(w, {shape[0], stored}, where + ": w" + names[m], beside);
    Weight weight{{format, w.data, nullptr, static_cast<size_t>(shape[0]), static_cast<size_t>(columns)},
                  nullptr,
                  static_cast<size_t>(w.shape[0] * w.shape[1]) * (format == Format::kF32 ? 4
                                                                  : is_quantized(format) ? 1
                                                                                         : 2)};
    if (is_quantized(format)) {
      const Tensor s = constant_input(op, api, info, first + 1, where + ": s" + names[m]);
      expect_shape(s, {shape[0], static_cast<int64_t>(blocks_of(weight.matrix.cols))}, where + ": s" + names[m],
                   beside);
      expect_finite(s, where + ": s" + names[m]);
      weight.matrix.scales = s.data;
    }
    const Tensor b = constant_input(op, api, info, first + step - 1, where + ": b" + names[m]);
    expect_shape(b, {!is_linear && m + 1 == names.size() ? columns : shape[0]}, where + ": b" + names[m], beside);
    weight.bias = b.data;
    weights.push_back(weight);
  }
  return weights;
}

}  // namespace prosparse::ort
