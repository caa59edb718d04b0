// What the processor and the operating system support.
#ifndef PROSPARSE_CPU_FEATURES_H_
#define PROSPARSE_CPU_FEATURES_H_

#include "prosparse/kernels.h"

namespace prosparse {

// Registers that the operating system does not save count as absent.
#if defined(__x86_64__)
bool has_avx2();  // with FMA and F16C
bool has_avx_vnni();
bool has_avx512();  // F, BW, DQ, VL
bool has_vnni();
bool has_bf16();  // of AVX-512
bool is_intel();
bool is_zen2();
bool is_zen5();  // or AMD's later ones
#if defined(PROSPARSE_AMX)
bool has_amx();
bool request_amx();  // asks the operating system for the tile registers of this process; false if denied
#endif
#elif defined(__aarch64__)
bool has_dotprod();
bool has_i8mm();  // with dotprod
#endif

}  // namespace prosparse

#endif  // PROSPARSE_CPU_FEATURES_H_
