// A forced variant is the one that runs, or nothing runs.
#include <string>

#include "check.h"

using namespace prosparse;
using namespace prosparse::testing;

int main() {
  size_t cases = 0;
  for (const Variant& variant : compiled_variants()) {
    const Choice choice = choose_variant(variant.kernels->isa);
    ++cases;
    if (variant.is_supported()) {
      CHECK(choice.kernels == variant.kernels, "forced %s", variant.kernels->isa);
    } else {
      CHECK(choice.kernels == nullptr && !choice.error.empty(), "%s cannot run but was chosen", variant.kernels->isa);
    }
  }
  const Choice unknown = choose_variant("sse9");
  CHECK(unknown.kernels == nullptr, "an unknown name chose %s", unknown.kernels->isa);
  CHECK(unknown.error == "PROSPARSE_ISA=sse9 cannot run here: this build has " + variant_names(false) +
                             "; this machine runs " + variant_names(true),
        "%s", unknown.error.c_str());
  const Choice best = choose_variant(nullptr);
  CHECK(best.kernels != nullptr && variant_names(true).rfind(best.kernels->isa, 0) == 0, "not the best one");
  CHECK(choose_variant("").kernels == best.kernels, "an empty PROSPARSE_ISA counts as unset");
  CHECK(std::strcmp(compiled_variants().back().kernels->isa, "scalar") == 0, "scalar is not last");
  return report(cases);
}
