#include "engine/stubs.h"

#include <algorithm>

#include "engine/clock.h"

namespace deeprecsys::engine {

namespace {

// Of a fixed time: late by less than a thousandth of one of 50 ms, and hardly any use of a core.
constexpr double kAwakeS = 100e-6;

using Inputs = std::vector<const void*>;

void* Prepare(void*, const Window* window) {
  return new Inputs(window->data, window->data + window->columns);
}

void Forget(void*, void* prepared) { delete static_cast<Inputs*>(prepared); }

}  // namespace

Executor NoOp::executor() {
  return {this, &Prepare, [](void*, const Piece*, std::size_t) { return 0; }, &Forget, nullptr};
}

Executor FixedTime::executor() {
  const auto execute = [](void* self, const Piece* pieces, std::size_t count) {
    static_cast<FixedTime*>(self)->Execute(pieces, count);
    return 0;
  };
  return {this, &Prepare, execute, &Forget, nullptr};
}

void FixedTime::Execute(const Piece* pieces, std::size_t count) const {
  const double began_s = Now();
  std::int64_t items = 0;
  for (std::size_t i = 0; i < count; ++i) items += pieces[i].hi - pieces[i].lo;
  const auto last = static_cast<std::int64_t>(service_s_.size()) - 1;
  SleepUntil(began_s + service_s_.at(std::min(items, last)), kAwakeS);
}

}  // namespace deeprecsys::engine
