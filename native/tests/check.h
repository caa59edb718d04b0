// What the C++ tests share: variants to run, a failure count, random numbers.
#ifndef PROSPARSE_TESTS_CHECK_H_
#define PROSPARSE_TESTS_CHECK_H_

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"

namespace prosparse::testing {

inline int failures = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      ++prosparse::testing::failures;                             \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (false)

// The variants that `--isa NAME` asks for, or all that this machine runs. Prints those left out.
inline std::vector<const Kernels*> variants_to_test(int argc, char** argv) {
  const char* wanted = nullptr;
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--isa") == 0) wanted = argv[i + 1];
  }
  std::vector<const Kernels*> chosen;
  for (const Variant& variant : compiled_variants()) {
    const char* isa = variant.kernels->isa;
    if (wanted != nullptr && std::strcmp(wanted, isa) != 0) continue;
    if (variant.is_supported() && (variant.request == nullptr || variant.request())) {
      chosen.push_back(variant.kernels);
    } else {
      std::printf("left out: %s is not supported here\n", isa);
    }
  }
  CHECK(!chosen.empty(), "no variant ran: expected --isa to be one of %s", variant_names(true).c_str());
  return chosen;
}

// --brief: fewer sizes, for an emulator.
inline bool is_brief(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--brief") == 0) return true;
  }
  return false;
}

inline int report(size_t cases) {
  CHECK(cases > 0, "no case ran");
  std::printf("%zu cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}

// gamma_bound(n) of Higham's error analysis, in single precision.
inline double gamma_bound(size_t n) {
  const double u = std::ldexp(1.0, -24) * static_cast<double>(n);
  return u / (1.0 - u);
}

inline std::vector<float> normals(std::mt19937& rng, size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_CHECK_H_
