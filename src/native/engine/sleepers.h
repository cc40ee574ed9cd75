// Which workers sleep, and whom to wake: a thread that is woken for nothing costs two context
// switches, one that is not woken leaves a query waiting. Its owner holds the lock.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "rules/policy.h"

namespace deeprecsys::engine {

// What waking a thread costs that must take the GIL: two context switches and a wait for it.
// Typical requests shorter than that leave the others asleep.
inline constexpr double kWakeS = 30e-6;
// Where requests are as short as that, those who are awake look again long before this is over.
inline constexpr double kStallS = 4e-3;

inline constexpr int kNobody = -1;

// What each idle worker sleeps on: opened once by who wakes it.
class Gate {
 public:
  void Open() {
    open_.store(1, std::memory_order_release);
    open_.notify_one();
  }
  void Pass() {
    while (open_.exchange(0, std::memory_order_acquire) == 0) open_.wait(0);
  }

 private:
  std::atomic<int> open_{0};
};

class Sleepers {
 public:
  Sleepers(int workers, int most_waking)
      : gates_(std::make_unique<Gate[]>(workers)),
        wanted(workers),
        workers_(workers),
        most_waking_(most_waking) {}

  Gate& gate(int worker) { return gates_[worker]; }
  bool any_idle() const { return !idle_.empty(); }
  // Workers that could take a request, beside the one that asks.
  int free() const { return static_cast<int>(idle_.size()) + hot + waking; }
  bool everybody() const { return static_cast<int>(idle_.size() + parked_.size()) == workers_; }
  void LieDown(int worker) { (worker < wanted ? idle_ : parked_).push_back(worker); }
  // Items wait: whose gate to open once the lock is released. Nobody's while a worker is about to
  // look again; nor, where requests are shorter than waking someone takes, while anybody is awake
  // at all: unless it turns out that they are `stuck` in long ones.
  int Wake(bool stuck = false);
  // Only so many of the workers take requests from now on.
  void Use(int workers);
  // Those that sleep, to go home: all their gates are to be opened.
  std::vector<int> EverybodyUp();

 private:
  std::unique_ptr<Gate[]> gates_;
  std::vector<int> idle_;
  std::vector<int> parked_;  // for the policy has no use for them

 public:
  // Workers from this number on are parked.
  int wanted;
  // Woken and not pulled yet. Each that pulls wakes the next while items wait, so a few at a time
  // suffice, and short requests do not wake workers that find nothing.
  int waking = 0;
  // Found nothing and look once more before they sleep: they take what comes next without being
  // woken.
  int hot = 0;
  // How long requests took lately that Python executed: what is native needs no GIL, and wakes.
  double typical_s = std::numeric_limits<double>::infinity();
  // When a worker last looked for something to do.
  double looked_s = -std::numeric_limits<double>::infinity();

 private:
  int workers_;
  int most_waking_;
};

}  // namespace deeprecsys::engine
