// Who is next of those that wait: `rules/line.py`, which is the specification and says why.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rules/heap.h"
#include "rules/policy.h"

namespace deeprecsys::rules {

// Items that a client may be behind.
inline constexpr double kCredit = 20'000;
// Dropped entries, clients and levels of which nothing waits, that may lie about.
inline constexpr std::size_t kSweep = 64;

class Line;
class Share;

// What the dispatcher remembers of one query it has not finished. It lives while it is open or lies
// in a queue: a dropped one stays there until it comes to the head or somebody sweeps.
struct Entry {
  QueryId id = 0;
  Items size = 0;
  Items next = 0;  // first item that no worker has taken
  Items left = 0;  // items not yet executed
  Policy policy;
  Line* line = nullptr;  // where it waits
  Share* share = nullptr;  // its model's
  Items accelerator = kNone;
  std::int64_t priority = 0;
  std::string client;
  double item_cost = 0.0;
  void* owner = nullptr;  // its owner's word for it, never looked at here
  bool open = true;
  bool queued = false;
  Entry* before = nullptr;  // of the open ones, in the order in which they came
  Entry* after = nullptr;
};

// Entries, and those that may be used again: one is made and unmade for every query.
class Entries {
 public:
  Entry* Make();
  // It is open no longer, or has left its queue.
  void Release(Entry* entry) {
    if (!entry->open && !entry->queued) free_.push_back(entry);
  }

 private:
  std::deque<Entry> all_;
  std::vector<Entry*> free_;
};

// One client's queries of one priority, in order. items, cost: of those that wait.
struct Queue {
  std::deque<Entry*> entries;
  Items items = 0;
  double cost = 0.0;
  std::size_t stale = 0;
};

class Line {
 public:
  explicit Line(Entries* entries, double credit = kCredit) : entries_(entries), credit_(credit) {}
  ~Line();
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  Items items() const { return items_; }
  double cost() const { return cost_; }

  // Behind its client's others of its priority, or before them.
  void Add(Entry* entry, bool first = false);
  // Whose items are next; null: nobody's.
  Entry* Head();
  // The next items of the head.
  void Take(Entry* entry, Items items);
  // It was dropped with items that nobody has taken.
  void Forget(Entry* entry);
  // The cost of what would be taken before a new query of this client were taken whole.
  double Ahead(const std::string& name, std::int64_t priority, Items size) const;

 private:
  // clock: items that it had; listed: the line counts it among those that may be next.
  struct Client {
    std::vector<std::pair<std::int64_t, std::unique_ptr<Queue>>> queues;  // by priority
    double clock = -std::numeric_limits<double>::infinity();
    bool listed = false;
    Items items = 0;
    double cost = 0.0;
  };
  // number: of its listing, so that of equal clocks the first listed is next.
  struct Listing {
    double clock;
    std::int64_t number;
    Client* client;
    bool operator<(const Listing& other) const {
      return clock != other.clock ? clock < other.clock : number < other.number;
    }
  };

  Client* ClientOf(const std::string& name);
  Queue* QueueOf(Client* client, std::int64_t priority);
  Entry* HeadOf(Client* client);
  void Wait(Client* client, Queue* queue, Items items, double cost);
  void Empty(Queue* queue);
  void SweepQueue(Queue* queue);
  void SweepClients();

  Entries* entries_;
  double credit_;
  std::unordered_map<std::string, std::unique_ptr<Client>> clients_;
  Client* nobody_ = nullptr;  // whose queries name no client: nearly always the only one
  Heap<Listing> next_;
  double clock_ = 0.0;
  std::int64_t listings_ = 0;
  std::size_t hollow_ = 0;
  Items items_ = 0;
  double cost_ = 0.0;
};

}  // namespace deeprecsys::rules
