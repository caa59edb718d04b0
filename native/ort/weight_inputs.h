// A node's constant inputs: their order, types, and shapes.
#ifndef PROSPARSE_ORT_WEIGHT_INPUTS_H_
#define PROSPARSE_ORT_WEIGHT_INPUTS_H_

#include <string>
#include <vector>

#include "custom_op.h"

namespace prosparse::ort {

// x, then for each matrix its weights, its scales (quantized formats only) and its bias.
size_t input_count(const Operator& op);
ElementType input_type(const Operator& op, size_t index);

struct Weight {
  Matrix matrix;
  const void* bias;  // float32
};

// The matrices in the order of the inputs: gate, up, down; up, down; or Linear's only one. Those of an FFN
// all have the same numbers of rows and columns. Throws InvalidArgument, beginning with `where`.
std::vector<Weight> read_weights(const Operator& op, const Api& api, const KernelInfo* info, const std::string& where);

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_WEIGHT_INPUTS_H_
