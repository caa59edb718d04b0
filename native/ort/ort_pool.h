// Tasks on onnxruntime's threads.
#ifndef PROSPARSE_ORT_ORT_POOL_H_
#define PROSPARSE_ORT_ORT_POOL_H_

#include "ort_abi.h"

namespace prosparse::ort {

struct OrtPool {
  const Api& api;
  const KernelContext* context;
  Status* failure;  // the first one
  ~OrtPool() {
    if (failure != nullptr) api.ReleaseStatus(failure);
  }
};

inline void run_on_pool(void* pool_pointer, size_t count, void (*task)(void*, size_t), void* argument) {
  OrtPool& pool = *static_cast<OrtPool*>(pool_pointer);
  Status* status = pool.api.KernelContext_ParallelFor(pool.context, task, count, 0, argument);
  if (status == nullptr) return;
  if (pool.failure == nullptr) {
    pool.failure = status;
  } else {
    pool.api.ReleaseStatus(status);
  }
}

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_ORT_POOL_H_
