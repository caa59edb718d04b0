// Reading shapes and contents of onnxruntime's tensors.
#ifndef PROSPARSE_ORT_TENSOR_H_
#define PROSPARSE_ORT_TENSOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace prosparse::ort {

struct Tensor {
  const void* data;
  ElementType type;
  std::vector<int64_t> shape;
};

inline std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

inline std::vector<int64_t> shape_of(const Api& api, const TensorInfo* info) {
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api.GetDimensions(info, shape.data(), rank));
  return shape;
}

inline std::string to_string(ElementType type) {
  switch (type) {
    case kFloat: return "float32";
    case kUint8: return "uint8";
    case kInt8: return "int8";
    case kInt32: return "int32";
    case kFloat16: return "float16";
    case kBFloat16: return "bfloat16";
    default: return "ONNX element type " + std::to_string(static_cast<int>(type));
  }
}

// Throws InvalidArgument, beginning with `what`, if the elements are of another type.
inline Tensor read_tensor(const Api& api, const Value* value, ElementType expected, const std::string& what) {
  TensorInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  struct Release {
    const Api& api;
    TensorInfo* info;
    ~Release() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } release{api, info};
  ElementType type = kUndefined;
  check(api.GetTensorElementType(info, &type));
  if (type != expected) throw InvalidArgument(what + ": expected " + to_string(expected) + ", got " + to_string(type));
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<Value*>(value), &data));
  return {data, type, shape_of(api, info)};
}

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_TENSOR_H_
