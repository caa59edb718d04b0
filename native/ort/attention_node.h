// The attention operators' kernel.
#ifndef PROSPARSE_ORT_ATTENTION_NODE_H_
#define PROSPARSE_ORT_ATTENTION_NODE_H_

#include <memory>

#include "custom_op.h"

namespace prosparse::ort {

// Reads attributes; throws InvalidArgument or Reported.
std::unique_ptr<Kernel> make_attention(const Operator& op, const Api& api, const KernelInfo* info);

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_ATTENTION_NODE_H_
