// The dispatcher: `rules/dispatch.py`, which is the specification and says why.
//
// Knows no threads, no clock and no tensors; its owner holds a lock.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rules/line.h"
#include "rules/policy.h"
#include "rules/shares.h"

namespace deeprecsys::rules {

inline constexpr double kNever = std::numeric_limits<double>::infinity();
inline constexpr std::int64_t kUsualPriority = 5;

// Items lo .. hi - 1 of a query; owner: what was given with it.
struct Slice {
  QueryId query;
  Items lo;
  Items hi;
  void* owner;
  Items model;
};

// The bound on queued items would be passed; the query was not taken.
class QueueFull : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A query whose deadline has passed, and what was given with it. executing: items of it that are.
struct Expired {
  QueryId query;
  void* owner;
  Items executing;
};

// A query as it comes. deadline_s: on the owner's clock. cost: what it adds to what is ahead.
struct Arrival {
  QueryId id = 0;
  Items size = 1;
  Policy policy;
  double deadline_s = kNever;
  std::int64_t priority = 0;
  double cost = 0.0;
  std::string client;
  void* owner = nullptr;
  Items model = 0;
};

class Dispatcher {
 public:
  // max_queued_items (of a model), most_items [accelerators]: kNone, any. credit: of a line.
  explicit Dispatcher(Items max_queued_items = kNone, std::vector<Items> most_items = {},
                      double credit = kCredit);

  std::size_t size() const { return open_.size(); }
  Items queued_items() const { return queued_items_; }
  const std::vector<Items>& offloaded_items() const { return offloaded_items_; }
  // model: kNone, of all.
  std::vector<QueryId> OpenQueries(Items model = kNone) const;
  bool IsOpen(QueryId query) const { return open_.contains(query); }
  // Items of it that were taken and are not over; 0 if it is not open.
  Items Executing(QueryId query) const;
  // What was given with an open query.
  void* OwnerOf(QueryId query) const { return open_.at(query)->owner; }

  // One more, beside number 0 which there is; its number. Throws for a weight that is not positive.
  Items AddModel(double weight) { return shares_.Add(weight); }
  void RemoveModel(Items model) { shares_.Remove(model); }
  void Weigh(Items model, double weight) { shares_.Weigh(model, weight); }
  // Its items that wait for the cores, and its open queries.
  Items ItemsOf(Items model) { return shares_.Of(model)->items; }
  Items OpenOf(Items model) { return shares_.Of(model)->open; }

  // For which accelerator, kNone for the cores. Throws QueueFull, and then takes none of it.
  Items Add(const Arrival& arrival);
  // Appends the slices that a worker executes next as one request; nothing if nothing waits.
  // idle: how many workers are free, this one among them.
  void Pull(Items idle, std::vector<Slice>* slices);
  // The same of an accelerator: whole queries.
  void PullOffloaded(Items accelerator, std::vector<Slice>* slices);
  Items Choice(Items size, const Policy& policy) const;
  double Ahead(std::int64_t priority, const std::string& client, Items size, Items model = 0,
               double cost = 0.0);
  double AheadOffloaded(Items accelerator, std::int64_t priority, const std::string& client,
                        Items size);
  // The open queries that an accelerator has, as they came: of each its id, size and policy.
  std::vector<const Entry*> Offloaded(Items accelerator) const;
  // It is lost: all that it had is the cores' and next in line. costs: of `Offloaded` there.
  void Retire(Items accelerator, const std::vector<double>& costs);
  void Restore(Items accelerator);
  // So many items of it were executed; true once, when that was the last of the query.
  bool Finish(QueryId query, Items items);
  // Cancelled, failed or expired: forgets what nobody has started. False: not open.
  bool Drop(QueryId query);
  // Drops and appends the open queries whose deadline is at or before `now`. owned: only those with
  // which something was given.
  void Expire(double now, std::vector<Expired>* expired, bool owned = false);
  bool has_deadlines() const { return !deadlines_.empty(); }
  // At or before the earliest deadline of an open query.
  double DueS() const { return deadlines_.empty() ? kNever : deadlines_.front().first; }
  double NextDeadlineS();

 private:
  void CheckRoom(Items size, const std::string& client, const Share& share) const;
  void Wait(const Entry& entry, Items items);
  void Spend(const Entry& entry, Items items);
  void Remember(double deadline_s, QueryId query);
  Slice Cut(Entry* entry, Items items);
  void Open(Entry* entry);
  void Close(Entry* entry);

  Items max_queued_items_;
  double credit_;
  Items queued_items_ = 0;
  std::vector<Items> offloaded_items_;
  double open_cost_ = 0.0;
  std::vector<double> offloaded_cost_;
  std::vector<Items> most_items_;
  Entries entries_;  // before the lines, which give theirs back
  Shares shares_;
  std::vector<std::unique_ptr<Line>> queues_;  // of the accelerators
  std::vector<Items> present_;
  std::unordered_map<QueryId, Entry*> open_;
  Entry* first_ = nullptr;  // of the open ones
  Entry* last_ = nullptr;
  std::unordered_map<std::string, Items> held_;  // items that wait or are offloaded, by client
  Heap<std::pair<double, QueryId>> deadlines_;
};

}  // namespace deeprecsys::rules
