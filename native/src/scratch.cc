#include "scratch.h"

#include <algorithm>
#include <new>

namespace prosparse {

constexpr std::align_val_t kPage{4096};

void Buffer::Free::operator()(void* p) const { ::operator delete(p, kPage); }

void* Buffer::bytes(size_t size) {
  if (size > size_) {
    data_.reset();
    size_ = 0;
    const size_t room = round_up(size + 256, 4096);
    data_.reset(::operator new(room, kPage));
    size_ = room - 256;  // vectors may read, not use, a little past the end
  }
  return data_.get();
}

LeftOut Scratch::left_out(size_t count) const {
  LeftOut tokens;
  for (size_t t = 0; t < count; ++t) tokens[t] = needs_fallback[t].load(std::memory_order_relaxed);
  return tokens;
}

std::shared_ptr<ScratchPool> ScratchPool::shared() {
  static std::mutex mutex;
  static std::weak_ptr<ScratchPool> current;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<ScratchPool> pool = current.lock();
  if (pool == nullptr) current = pool = std::make_shared<ScratchPool>();
  return pool;
}

std::unique_ptr<Scratch> ScratchPool::take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<Scratch> scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>();
}

void ScratchPool::give_back(std::unique_ptr<Scratch> scratch) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  try {
    free_.push_back(std::move(scratch));
  } catch (const std::bad_alloc&) {  // the next call allocates its own
  }
}

}  // namespace prosparse
