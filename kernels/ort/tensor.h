// Reading shapes and contents of onnxruntime's tensors.
#ifndef PROSPARSE_ORT_TENSOR_H_
#define PROSPARSE_ORT_TENSOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace prosparse::ort {

struct Tensor {
  const float* data;
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

// Throws InvalidArgument, beginning with `what`, if the tensor is not float32.
inline Tensor read_tensor(const Api& api, const Value* value, const std::string& what) {
  TensorInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  struct Release {
    const Api& api;
    TensorInfo* info;
    ~Release() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } release{api, info};
  ElementType type = kUndefined;
  check(api.GetTensorElementType(info, &type));
  if (type != kFloat) throw InvalidArgument(what + ": expected float32, got ONNX element type " + std::to_string(type));
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<Value*>(value), &data));
  return {static_cast<const float*>(data), shape_of(api, info)};
}

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_TENSOR_H_
