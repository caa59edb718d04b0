// operator new that fails when a test asks for it. For one source file of a program: it defines the program's own.
#ifndef PROSPARSE_TESTS_FAILING_MEMORY_H_
#define PROSPARSE_TESTS_FAILING_MEMORY_H_

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

namespace prosparse::testing {

// Which calls of operator new fail: from the one that is `left` away, or that one alone; everywhere, here or elsewhere.
enum class Where { kNowhere, kHere, kElsewhere, kEverywhere };
inline std::atomic<Where> where{Where::kNowhere};
inline std::atomic<bool> once{false};
inline std::atomic<long> left{0};
inline std::atomic<long> failed{0};
inline const std::thread::id here = std::this_thread::get_id();

inline void fail(Where place, long after, bool only_once) {
  left = after;
  once = only_once;
  failed = 0;
  where = place;
}

inline bool may_allocate() {
  const Where place = where;
  if (place == Where::kNowhere) return true;
  if (place != Where::kEverywhere && (place == Where::kHere) != (std::this_thread::get_id() == here)) return true;
  const long now = left--;
  if (now > 0 || (now < 0 && once)) return true;
  ++failed;
  return false;
}

}  // namespace prosparse::testing

// Not inline: gcc takes malloc and a delete expression that it sees beside each other for a mistake.
__attribute__((noinline)) void* operator new(size_t size) {
  void* memory = prosparse::testing::may_allocate() ? std::malloc(size != 0 ? size : 1) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

#endif  // PROSPARSE_TESTS_FAILING_MEMORY_H_
