// Claims on threads that share a loop as onnxruntime's do: blocks of consecutive runners, one at a time.
#include "claims.h"

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "check.h"

using namespace prosparse;
using namespace prosparse::testing;

namespace {

size_t block_size(size_t runners, size_t threads) { return (runners + threads - 1) / threads; }

// onnxruntime 1.32, ParallelForFixedBlockSizeScheduling: as many threads take part as there are whole blocks.
size_t taking_part(size_t runners, size_t threads) {
  return std::max<size_t>(1, std::min(threads, runners / block_size(runners, threads)));
}

// Runs loop(runner) for all runners, on threads of its own.
template <class Loop>
void run_blocks(size_t runners, size_t threads, const Loop& loop) {
  const size_t size = block_size(runners, threads);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t first = next.fetch_add(size); first < runners; first = next.fetch_add(size)) {
      for (size_t i = first; i < std::min(runners, first + size); ++i) loop(i);
    }
  };
  std::vector<std::thread> pool;
  for (size_t i = 1; i < taking_part(runners, threads); ++i) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
}

size_t test_each_task_once(size_t count, size_t threads) {
  const size_t runners = runners_for(count, threads);
  Claims claims(count, runners);
  const std::unique_ptr<std::atomic<int>[]> ran(new std::atomic<int>[count]());
  run_blocks(runners, threads, [&](size_t runner) { claims.run(runner, [&](size_t k) { ++ran[k]; }); });
  size_t once = 0;
  for (size_t k = 0; k < count; ++k) once += ran[k] == 1;
  CHECK(once == count, "%zu tasks on %zu threads: %zu ran once", count, threads, once);
  CHECK(claims.threads() >= 1 && claims.threads() <= std::min(count, threads), "%zu tasks on %zu threads: %zu seen",
        count, threads, claims.threads());
  return 1;
}

// A thread that does not get on with its first task leaves all others to the rest.
size_t test_slow_thread(size_t count, size_t threads) {
  const size_t runners = runners_for(count, threads);
  Claims claims(count, runners);
  std::mutex mutex;
  std::condition_variable changed;
  size_t done = 0;
  bool is_slow_taken = false;
  run_blocks(runners, threads, [&](size_t runner) {
    claims.run(runner, [&](size_t) {
      std::unique_lock<std::mutex> lock(mutex);
      if (!is_slow_taken) {
        is_slow_taken = true;
        const bool others_ended = changed.wait_for(lock, std::chrono::seconds(60), [&] { return done == count - 1; });
        CHECK(others_ended, "%zu tasks on %zu threads: %zu wait for a slow thread", count, threads, count - 1 - done);
      }
      ++done;
      changed.notify_all();
    });
  });
  CHECK(done == count, "%zu tasks on %zu threads: %zu ran", count, threads, done);
  return 1;
}

// All threads of a pool of any size take part within some loops, as long as each is awake.
size_t test_runners(size_t threads) {
  const size_t count = 4 * threads;
  size_t seen = 1;
  for (int loop = 0; loop < 12; ++loop) seen = taking_part(runners_for(count, seen), threads);
  CHECK(seen == threads, "%zu of %zu threads take part", seen, threads);
  CHECK(taking_part(runners_for(3, threads), threads) == std::min<size_t>(3, threads), "3 tasks on %zu threads",
        threads);
  return 1;
}

}  // namespace

int main() {
  size_t cases = 0;
  for (size_t threads : {1, 2, 3, 5, 16}) {
    for (size_t count : {1, 2, 15, 16, 64, 255, 256, 257, 1000}) cases += test_each_task_once(count, threads);
  }
  for (size_t threads : {2, 3, 7}) {
    for (size_t count : {2, 16, 64}) cases += test_slow_thread(count, threads);
  }
  for (size_t threads = 1; threads <= 300; ++threads) cases += test_runners(threads);
  return report(cases);
}
