#include "engine/sleepers.h"

#include <algorithm>

namespace deeprecsys::engine {

int Sleepers::Wake(bool stuck) {
  const int awake = wanted - static_cast<int>(idle_.size());
  const bool brief = awake > 0 && typical_s < kWakeS && !stuck;
  if (idle_.empty() || brief || hot > 0 || waking >= most_waking_) return kNobody;
  ++waking;
  const int worker = idle_.back();
  idle_.pop_back();
  return worker;
}

void Sleepers::Use(int workers) {
  wanted = std::min(workers, workers_);
  std::vector<int> sleeping = std::move(parked_);
  sleeping.insert(sleeping.end(), idle_.begin(), idle_.end());
  idle_.clear();
  parked_.clear();
  for (const int worker : sleeping) LieDown(worker);
}

std::vector<int> Sleepers::EverybodyUp() {
  std::vector<int> sleeping = std::move(idle_);
  sleeping.insert(sleeping.end(), parked_.begin(), parked_.end());
  idle_.clear();
  parked_.clear();
  return sleeping;
}

}  // namespace deeprecsys::engine
