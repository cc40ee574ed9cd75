// The core's one lock. It is held for a fraction of a microsecond, so who finds it taken tries
// again for a moment before it sleeps: two context switches cost ten times as much.
#pragma once

#include <mutex>

namespace deeprecsys::engine {

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class Lock {
 public:
  void lock() {
    for (int i = 0; i < kTries; ++i) {
      if (mutex_.try_lock()) return;
      Pause();
    }
    mutex_.lock();
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr int kTries = 100;  // some 4 us
  std::mutex mutex_;
};

}  // namespace deeprecsys::engine
