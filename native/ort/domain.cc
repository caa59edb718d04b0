#include "domain.h"

#include <cstdlib>

#include "../src/dispatch.h"
#include "custom_op.h"
#include "status.h"

namespace prosparse::ort {

CustomOpDomain* make_domain(const Api& api) {
  const Choice choice = choose_variant(std::getenv("PROSPARSE_ISA"));
  if (choice.kernels == nullptr) throw InvalidArgument(choice.error);
  CustomOpDomain* domain = nullptr;
  check(api.CreateCustomOpDomain("com.prosparse", &domain));
  try {
    for (const CustomOp* const* op = custom_ops(); *op != nullptr; ++op) check(api.CustomOpDomain_Add(domain, *op));
  } catch (...) {
    api.ReleaseCustomOpDomain(domain);
    throw;
  }
  return domain;
}

}  // namespace prosparse::ort
