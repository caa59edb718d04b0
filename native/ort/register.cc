// What the shared library exports: onnxruntime's entry point, a description of the build, and rounding for Python.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../src/dispatch.h"
#include "../src/round_weights.h"
#include "custom_op.h"
#include "domain.h"
#include "export.h"
#include "status.h"

namespace prosparse::ort {
namespace {

// The domain is onnxruntime's to keep while sessions use it; it is freed when the process ends.
void add_domain(const Api& api, OrtSessionOptions* options) {
  CustomOpDomain* const domain = make_domain(api);
  try {
    check(api.AddCustomOpDomain(options, domain));
  } catch (...) {
    api.ReleaseCustomOpDomain(domain);
    throw;
  }
}

}  // namespace
}  // namespace prosparse::ort

// Adds domain com.prosparse to `options`. Called by onnxruntime; see RegisterCustomOpsLibrary there.
PROSPARSE_EXPORT prosparse::ort::Status* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* opaque) {
  using namespace prosparse::ort;
  const ApiBase* base = reinterpret_cast<const ApiBase*>(opaque);
  const Api* api = base->GetApi(kApiVersion);
  if (api == nullptr) {  // version 1 exists in every release, and its first member makes a status
    const std::string text =
        std::string("the com.prosparse operators need onnxruntime 1.18 or newer, got ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(kNotImplemented, text.c_str());
  }
  return guarded(*api, [&] { add_domain(*api, options); });
}

// Read from the file without loading it (prosparse_export/artifact/libraries.py). volatile keeps the text in one piece.
static const char* const volatile version_mark = "prosparse_ops version " PROSPARSE_VERSION;

// JSON: version, operators, isa_compiled, isa_supported, isa_used (null if PROSPARSE_ISA cannot run), error.
PROSPARSE_EXPORT const char* prosparse_ops_info(void) {
  thread_local std::string text;  // valid until the thread's next call
  try {
    const prosparse::Choice choice = prosparse::choose_variant(std::getenv("PROSPARSE_ISA"));
    const std::string used = choice.kernels != nullptr ? "\"" + std::string(choice.kernels->isa) + "\"" : "null";
    std::string error;
    for (const char c : choice.error) error += c == '"' || c == '\\' ? '\'' : c;
    const char* const version = version_mark + std::strlen("prosparse_ops version ");
    std::string operators;
    for (const auto* const* op = prosparse::ort::custom_ops(); *op != nullptr; ++op) {
      operators += std::string(operators.empty() ? "\"" : ", \"") + (*op)->GetName(*op) + "\"";
    }
    text = std::string("{\"version\": \"") + version + "\", \"operators\": [" + operators + "], \"isa_compiled\": [" +
           prosparse::variant_names(false, "\"") + "], \"isa_supported\": [" + prosparse::variant_names(true, "\"") +
           "], \"isa_used\": " + used + ", \"error\": " + (error.empty() ? "null" : "\"" + error + "\"") + "}";
    return text.c_str();
  } catch (...) {
    return "{\"error\": \"out of memory\"}";
  }
}

// For prosparse_export/runtime/weight_rounding.py, which has the same structs: a change of theirs renames the
// functions. 0: done. 1: left undone, see round_weights.h, or memory ran out.
PROSPARSE_EXPORT int prosparse_search_scales_2(const prosparse::SourceWeights* weights,
                                               const prosparse::ScaleSearch* search, uint16_t* scales,
                                               unsigned threads) {
  try {
    return prosparse::search_scales(*weights, *search, scales, threads) ? 0 : 1;
  } catch (...) {
    return 1;
  }
}

PROSPARSE_EXPORT int prosparse_round_weights_2(const prosparse::SourceWeights* weights, const uint16_t* scales,
                                               const prosparse::RoundedWeights* rounded, unsigned threads) {
  try {
    return prosparse::round_weights(*weights, scales, *rounded, threads) ? 0 : 1;
  } catch (...) {
    return 1;
  }
}
