// Which variants this build has, which this machine runs, and which one is used.
#ifndef PROSPARSE_DISPATCH_H_
#define PROSPARSE_DISPATCH_H_

#include <string>
#include <vector>

#include "prosparse/kernels.h"

namespace prosparse {

struct Variant {
  const Kernels* kernels;
  bool (*is_supported)();       // by the processor and by the operating system
  bool (*request)() = nullptr;  // asks the operating system for permission; false if denied
};

// Best first; "scalar" is last and runs anywhere.
const std::vector<Variant>& compiled_variants();

struct Choice {
  const Kernels* kernels;  // null if `error` is set
  std::string error;       // one line
};

// The best supported variant, or the one that `forced` names. A forced variant that cannot run is an
// error, never another variant. `forced` is PROSPARSE_ISA's value; null or "" for none.
Choice choose_variant(const char* forced);

// How far a token's linear stream is prefetched, in bytes; 0: the processor does that well itself. rounded: at accuracy
// level 4.
size_t prefetch_distance(Format format, bool rounded);

// Whether one token should read several panels at once: some processors read several streams faster than one.
bool reads_side_by_side(size_t panel_bytes);

// How often upcoming rows of up_proj and down_proj are prefetched: 0, 1 or 2 times.
int row_prefetches(size_t d_model);

// Whether a token's rows are prefetched if `fresh` of its `rows` have not been read by the tokens before it.
bool is_worth_prefetching(size_t fresh, size_t rows);

// From how many tokens an FFN uses all of DotKernels.
size_t batch_tokens(const DotKernels& dot);

// "avx512, avx2, scalar"
std::string variant_names(bool supported_only, const char* quote = "");

}  // namespace prosparse

#endif  // PROSPARSE_DISPATCH_H_
