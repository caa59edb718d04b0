// The two operators of domain com.prosparse, as onnxruntime's custom ops.
#ifndef PROSPARSE_ORT_FFN_OP_H_
#define PROSPARSE_ORT_FFN_OP_H_

#include "ort_abi.h"

namespace prosparse::ort {

// Descriptions with static lifetime; null-terminated. Kernels use the variant that PROSPARSE_ISA or
// the machine chooses.
const CustomOp* const* custom_ops();

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_FFN_OP_H_
