// The domain com.prosparse with all operators.
#ifndef PROSPARSE_ORT_DOMAIN_H_
#define PROSPARSE_ORT_DOMAIN_H_

#include "ort_abi.h"

namespace prosparse::ort {

// Throws InvalidArgument if PROSPARSE_ISA names a variant that cannot run here, or Reported.
CustomOpDomain* make_domain(const Api& api);

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_DOMAIN_H_
