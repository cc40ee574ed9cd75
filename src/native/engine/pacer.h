// Keeps the thread that makes it from computing for more than a share of the time: what it takes of
// memory and caches slows whoever else computes, whatever its priority.
//
// A timer of the thread's own processor time interrupts it, and the handler sleeps for the rest. A
// thread that holds something others wait for goes on instead: `Busy` says so, and is called in the
// handler. System calls are restarted; the kernel's locks are never held there.
#pragma once

#include <csignal>
#include <ctime>

namespace deeprecsys::engine {

class Pacer {
 public:
  // share: of one core, above 0 and at most 1. busy: holds the calling thread what others need?
  Pacer(double share, bool (*busy)());
  ~Pacer();
  Pacer(const Pacer&) = delete;
  Pacer& operator=(const Pacer&) = delete;
  // False: the system has no such timers, and the thread runs as it would.
  bool paced() const { return paced_; }

 private:
  timer_t timer_{};
  bool paced_ = false;
};

}  // namespace deeprecsys::engine
