// Storms of queries through the dispatcher: no item is lost or executed twice, and nothing that was
// freed is touched (AddressSanitizer).
#include <map>
#include <random>
#include <string>
#include <vector>

#include "rules/dispatch.h"
#include "tests/check.h"

namespace deeprecsys::rules {
namespace {

constexpr Items kClients = 90, kLevels = 9;

void Storm(unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](Items n) { return static_cast<Items>(random() % n); };
  Dispatcher rules(20'000, {kNone, 100});
  std::map<QueryId, Items> executed, size;
  std::vector<Slice> begun, pulled;
  QueryId next = 0;
  double now = 0.0;
  for (int step = 0; step < 50'000; ++step) {
    now += 0.001;
    const Items turn = below(100);
    if (turn < 35) {
      Arrival arrival;
      arrival.id = next++;
      arrival.size = size[arrival.id] = 1 + below(120);
      arrival.policy.batch_size = 16;
      arrival.policy.adaptive = below(2) == 0;
      arrival.policy.offload_threshold = below(3) == 0 ? 60 : kNone;
      arrival.priority = below(kLevels);
      if (below(3) != 0) arrival.client = "client " + std::to_string(below(kClients));
      if (below(4) == 0) arrival.deadline_s = now + 0.001 * static_cast<double>(below(500));
      try {
        rules.Add(arrival);
      } catch (const QueueFull&) {
        size.erase(arrival.id);
      }
    } else if (turn < 65) {
      rules.Pull(1 + below(4), &begun);
    } else if (turn < 70) {
      rules.PullOffloaded(below(2), &begun);
    } else if (turn < 90 && !begun.empty()) {
      const Slice slice = begun[below(static_cast<Items>(begun.size()))];
      std::erase_if(begun, [&](const Slice& other) {
        return other.query == slice.query && other.lo == slice.lo;
      });
      const bool open = size.contains(slice.query);
      executed[slice.query] += slice.hi - slice.lo;
      const bool last = rules.Finish(slice.query, slice.hi - slice.lo);
      CHECK(last == (open && executed[slice.query] == size[slice.query]));
      if (last) size.erase(slice.query);
    } else if (turn < 96 && next > 0) {
      const QueryId victim = next - 1 - below(std::min<Items>(next, 200));
      CHECK(rules.Drop(victim) == size.contains(victim));
      size.erase(victim);
    } else if (turn < 99) {
      std::vector<Expired> expired;
      rules.Expire(now, &expired);
      for (const Expired& one : expired) CHECK(size.erase(one.query) == 1);
    } else {
      const Items lost = below(2);
      std::vector<double> costs;
      for (const Entry* entry : rules.Offloaded(lost)) {
        costs.push_back(1.0);
        executed[entry->id] = 0;
        std::erase_if(begun, [&](const Slice& slice) { return slice.query == entry->id; });
      }
      rules.Retire(lost, costs);
      rules.Restore(lost);
    }
    CHECK(rules.size() == size.size());
  }
  for (const QueryId query : rules.OpenQueries()) rules.Drop(query);
  CHECK(rules.size() == 0 && rules.queued_items() == 0);
}

}  // namespace
}  // namespace deeprecsys::rules

int main() {
  for (unsigned seed = 0; seed < 4; ++seed) deeprecsys::rules::Storm(seed);
  std::puts("rules: sound");
}
