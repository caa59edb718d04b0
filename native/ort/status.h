// Errors between C++ and onnxruntime: exceptions inside, a status with one line of text outside.
#ifndef PROSPARSE_ORT_STATUS_H_
#define PROSPARSE_ORT_STATUS_H_

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "ort_abi.h"

namespace prosparse::ort {

// An error in the model or in the call.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// onnxruntime itself reported this; it is passed on as it is.
struct Reported {
  Status* status;
};

inline void check(Status* status) {
  if (status != nullptr) throw Reported{status};
}

// Runs `body` and turns what it throws into a status: no exception may reach onnxruntime's frames.
template <typename Body>
Status* guarded(const Api& api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Reported& reported) {
    return reported.status;
  } catch (const InvalidArgument& error) {
    return api.CreateStatus(kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(kFail, "com.prosparse: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "com.prosparse: unknown failure");
  }
}

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_STATUS_H_
