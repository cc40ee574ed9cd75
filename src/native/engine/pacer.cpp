#include "engine/pacer.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace deeprecsys::engine {

namespace {

// Computes about so long at a time, or as long as a tick of the kernel.
constexpr std::int64_t kSliceNs = 1'000'000;
// At a time: what it holds then that it did not say, an allocator's lock, others wait for so long.
constexpr std::int64_t kLongestNs = 40'000'000;

thread_local std::int64_t spent_ns = 0;  // when it rested last
thread_local double times = 0.0;         // so much longer it rests than it computes
thread_local bool (*is_busy)() = nullptr;

int Signal() { return SIGRTMIN + 5; }

std::int64_t Spent() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

void Rest(int) {
  if (times <= 0 || is_busy()) return;
  const int before = errno;
  const double owed = static_cast<double>(Spent() - spent_ns) * times;
  const auto rest_ns = std::min(static_cast<std::int64_t>(owed), kLongestNs);
  const timespec rest{rest_ns / 1'000'000'000, rest_ns % 1'000'000'000};
  nanosleep(&rest, nullptr);
  spent_ns += static_cast<std::int64_t>(static_cast<double>(rest_ns) / times);
  errno = before;
}

}  // namespace

Pacer::Pacer(double share, bool (*busy)()) {
  times = 1.0 / std::min(share, 1.0) - 1.0;
  spent_ns = Spent();
  is_busy = busy;
  struct sigaction action {};
  action.sa_handler = &Rest;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = Signal();
  event._sigev_un._tid = gettid();
  if (sigaction(Signal(), &action, nullptr) != 0 ||
      timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) != 0) {
    return;
  }
  itimerspec often{};
  often.it_value.tv_nsec = often.it_interval.tv_nsec = kSliceNs;
  paced_ = timer_settime(timer_, 0, &often, nullptr) == 0;
}

Pacer::~Pacer() {
  times = 0.0;
  if (paced_) timer_delete(timer_);
}

}  // namespace deeprecsys::engine
