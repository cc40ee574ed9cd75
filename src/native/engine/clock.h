// The engine's clock, in seconds: that of Python's `time.perf_counter`, which records are made of.
#pragma once

#include <time.h>

#include <cmath>

namespace deeprecsys::engine {

inline double Now() {
  timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
}

// Until that time; the last `awake_s` of it are spent awake, for a sleeper is woken late: by a
// timer's slack, which `PreciseTimers` takes away, and by what it takes to leave an idle state.
inline void SleepUntil(double until_s, double awake_s) {
  const double asleep_s = until_s - awake_s;
  if (asleep_s > Now()) {
    timespec at;
    at.tv_sec = static_cast<time_t>(std::floor(asleep_s));
    at.tv_nsec = static_cast<long>((asleep_s - std::floor(asleep_s)) * 1e9);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) != 0) {
    }
  }
  while (Now() < until_s) {
  }
}

// The calling thread's sleeps end when they should, where the system can do that.
void PreciseTimers();

}  // namespace deeprecsys::engine
