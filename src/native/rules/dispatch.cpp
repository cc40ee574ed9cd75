#include "rules/dispatch.h"

#include <algorithm>
#include <numeric>

namespace deeprecsys::rules {

namespace {

// A client may hold so many times what is left of the bound on queued items.
constexpr Items kShareOfRest = 3;

// Of those that wait, which go before or after everybody else's.
std::int64_t LevelOf(std::int64_t priority, const std::string& client) {
  return client.empty() ? priority : std::max(priority, kUsualPriority);
}

}  // namespace

Dispatcher::Dispatcher(Items max_queued_items, std::vector<Items> most_items, double credit)
    : max_queued_items_(max_queued_items),
      credit_(credit),
      offloaded_items_(most_items.size(), 0),
      offloaded_cost_(most_items.size(), 0.0),
      most_items_(std::move(most_items)),
      shares_(&entries_, credit),
      present_(most_items_.size()) {
  std::iota(present_.begin(), present_.end(), 0);
  for (std::size_t i = 0; i < most_items_.size(); ++i) {
    queues_.push_back(std::make_unique<Line>(&entries_, credit_));
  }
}

std::vector<QueryId> Dispatcher::OpenQueries(Items model) const {
  std::vector<QueryId> found;
  for (const Entry* entry = first_; entry != nullptr; entry = entry->after) {
    if (model == kNone || entry->share->number == model) found.push_back(entry->id);
  }
  return found;
}

Items Dispatcher::Add(const Arrival& arrival) {
  Share* share = shares_.Of(arrival.model);
  CheckRoom(arrival.size, arrival.client, *share);
  const Items chosen = Choice(arrival.size, arrival.policy);
  Entry* entry = entries_.Make();
  entry->id = arrival.id;
  entry->size = entry->left = arrival.size;
  entry->policy = arrival.policy;
  entry->accelerator = chosen;
  entry->priority = arrival.priority;
  entry->client = arrival.client;
  entry->item_cost = arrival.cost / static_cast<double>(arrival.size);
  entry->owner = arrival.owner;
  entry->share = share;
  if (chosen == kNone) {
    entry->line = share->LineOf(LevelOf(arrival.priority, arrival.client));
    open_cost_ += arrival.cost;
  } else {
    entry->line = queues_[chosen].get();
    offloaded_cost_[chosen] += arrival.cost;
  }
  Open(entry);
  entry->line->Add(entry);
  Wait(*entry, arrival.size);
  if (arrival.deadline_s < kNever) Remember(arrival.deadline_s, arrival.id);
  return chosen;
}

void Dispatcher::CheckRoom(Items size, const std::string& client, const Share& share) const {
  if (max_queued_items_ == kNone) return;
  const Items waiting =
      std::accumulate(offloaded_items_.begin(), offloaded_items_.end(), share.items);
  if (waiting == 0) return;
  if (waiting + size > max_queued_items_) {
    throw QueueFull(std::to_string(waiting) + " items wait already, the bound is " +
                    std::to_string(max_queued_items_));
  }
  if (client.empty()) return;
  const auto found = held_.find(client);
  const Items held = found == held_.end() ? 0 : found->second;
  if (held + size > kShareOfRest * (max_queued_items_ - waiting)) {
    throw QueueFull(std::to_string(held) + " items of this client wait already");
  }
}

// So many of its items more (or fewer) wait for the cores, or for its accelerator.
void Dispatcher::Wait(const Entry& entry, Items items) {
  if (entry.accelerator == kNone) {
    queued_items_ += items;
    shares_.Wait(entry.share, items);
  } else {
    offloaded_items_[entry.accelerator] += items;
  }
  if (entry.client.empty()) return;
  const auto held = held_.try_emplace(entry.client, 0).first;
  held->second += items;
  if (held->second == 0) held_.erase(held);
}

// So many items are open no longer.
void Dispatcher::Spend(const Entry& entry, Items items) {
  double& cost = entry.accelerator == kNone ? open_cost_ : offloaded_cost_[entry.accelerator];
  cost -= static_cast<double>(items) * entry.item_cost;
}

void Dispatcher::Remember(double deadline_s, QueryId query) {
  if (deadlines_.size() > kSweep + 2 * open_.size()) {
    deadlines_.Filter([this](const auto& due) { return open_.contains(due.second); });
  }
  deadlines_.Push({deadline_s, query});
}

void Dispatcher::Pull(Items idle, std::vector<Slice>* slices) {
  Share* share = shares_.Next();
  Entry* entry = share != nullptr ? share->Head() : nullptr;
  if (entry == nullptr) return;
  const Policy policy = entry->policy;
  Items wanted = RequestItems(policy, share->items, idle);
  do {
    slices->push_back(Cut(entry, wanted));
    if (!policy.adaptive) return;
    wanted -= slices->back().hi - slices->back().lo;
  } while (wanted != 0 && (entry = share->Head()) != nullptr && entry->policy == policy);
}

// The next items of the query at the head, at most so many.
Slice Dispatcher::Cut(Entry* entry, Items items) {
  const Items lo = entry->next;
  items = std::min(items, entry->size - lo);
  entry->line->Take(entry, items);
  shares_.Take(entry->share, static_cast<double>(items) * entry->item_cost, items);
  Wait(*entry, -items);
  return {entry->id, lo, lo + items, entry->owner, entry->share->number};
}

void Dispatcher::PullOffloaded(Items accelerator, std::vector<Slice>* slices) {
  Line* line = queues_[accelerator].get();
  const Items most = most_items_[accelerator];
  Entry* entry = nullptr;
  Policy policy;
  Items left = 0;
  bool first = true;
  while (line->items() != 0 && (entry = line->Head()) != nullptr) {
    if (first) {
      policy = entry->policy;
      left = most == kNone ? policy.most_items : std::min(policy.most_items, most);
    } else if (entry->size > left || !(entry->policy == policy)) {
      return;
    }
    first = false;
    left -= entry->size;
    line->Take(entry, entry->size);
    slices->push_back({entry->id, 0, entry->size, entry->owner, entry->share->number});
  }
}

// Of the accelerators that can hold such a query the one with the fewest items to do, of equals the
// first; kNone: the cores.
Items Dispatcher::Choice(Items size, const Policy& policy) const {
  if (present_.empty() || !Offloads(policy, size)) return kNone;
  Items least = kNone;
  for (const Items accelerator : present_) {
    const Items most = most_items_[accelerator];
    if (most != kNone && size > most) continue;
    if (least == kNone || offloaded_items_[accelerator] < offloaded_items_[least]) {
      least = accelerator;
    }
  }
  if (least == kNone) return kNone;
  const bool enough =
      policy.offload_backlog != kNone && offloaded_items_[least] > policy.offload_backlog;
  return enough ? kNone : least;
}

double Dispatcher::Ahead(std::int64_t priority, const std::string& client, Items size, Items model,
                         double cost) {
  if (open_.empty()) open_cost_ = 0.0;  // sums of fractions do not return to nothing
  const Share& own = *shares_.Of(model);
  const double before = own.Ahead(LevelOf(priority, client), client, priority, size);
  const double executing = open_cost_ - shares_.Cost();
  return std::max(0.0, executing + before + shares_.Others(own, before + cost));
}

double Dispatcher::AheadOffloaded(Items accelerator, std::int64_t priority,
                                  const std::string& client, Items size) {
  const Line& line = *queues_[accelerator];
  if (offloaded_items_[accelerator] == 0) offloaded_cost_[accelerator] = 0.0;
  const double cost = offloaded_cost_[accelerator] - line.cost();
  return std::max(0.0, cost + line.Ahead(client, priority, size));
}

std::vector<const Entry*> Dispatcher::Offloaded(Items accelerator) const {
  std::vector<const Entry*> found;
  for (const Entry* entry = first_; entry != nullptr; entry = entry->after) {
    if (entry->accelerator == accelerator) found.push_back(entry);
  }
  return found;
}

void Dispatcher::Retire(Items accelerator, const std::vector<double>& costs) {
  std::erase(present_, accelerator);
  const auto back = Offloaded(accelerator);
  // First, for it takes its entries for its own: they are about to lie elsewhere.
  queues_[accelerator] = std::make_unique<Line>(&entries_, credit_);
  offloaded_cost_[accelerator] = 0.0;
  for (std::size_t i = back.size(); i-- > 0;) {
    Entry* entry = open_.at(back[i]->id);
    Wait(*entry, -entry->size);
    entry->accelerator = kNone;
    entry->next = 0;
    entry->item_cost = costs.at(i) / static_cast<double>(entry->size);
    entry->line = entry->share->LineOf(LevelOf(entry->priority, entry->client));
    entry->line->Add(entry, true);
    Wait(*entry, entry->size);
    open_cost_ += static_cast<double>(entry->size) * entry->item_cost;
  }
}

void Dispatcher::Restore(Items accelerator) {
  if (std::find(present_.begin(), present_.end(), accelerator) != present_.end()) return;
  present_.push_back(accelerator);
  std::sort(present_.begin(), present_.end());
}

bool Dispatcher::Finish(QueryId query, Items items) {
  const auto found = open_.find(query);
  if (found == open_.end()) return false;  // dropped while this request was executing
  Entry* entry = found->second;
  entry->left -= items;
  Spend(*entry, items);
  if (entry->left != 0) return false;
  open_.erase(found);
  if (entry->accelerator != kNone) Wait(*entry, -entry->size);
  Close(entry);
  entries_.Release(entry);
  return true;
}

bool Dispatcher::Drop(QueryId query) {
  const auto found = open_.find(query);
  if (found == open_.end()) return false;
  Entry* entry = found->second;
  open_.erase(found);
  Spend(*entry, entry->left);
  if (entry->accelerator == kNone) {
    Wait(*entry, entry->next - entry->size);
  } else {
    Wait(*entry, -entry->size);
  }
  Close(entry);
  if (entry->next < entry->size) {
    entry->line->Forget(entry);  // and releases it, now or later
  } else {
    entries_.Release(entry);
  }
  return true;
}

Items Dispatcher::Executing(QueryId query) const {
  const auto found = open_.find(query);
  if (found == open_.end()) return 0;
  const Entry& entry = *found->second;
  return entry.next - (entry.size - entry.left);
}

void Dispatcher::Expire(double now, std::vector<Expired>* expired, bool owned) {
  std::vector<std::pair<double, QueryId>> left;
  while (!deadlines_.empty() && deadlines_.front().first <= now) {
    const auto due = deadlines_.front();
    deadlines_.Pop();
    if (!IsOpen(due.second)) continue;
    void* owner = OwnerOf(due.second);
    if (owned && owner == nullptr) {
      left.push_back(due);
      continue;
    }
    expired->push_back({due.second, owner, Executing(due.second)});
    Drop(due.second);
  }
  for (const auto& due : left) deadlines_.Push(due);
}

double Dispatcher::NextDeadlineS() {
  while (!deadlines_.empty() && !open_.contains(deadlines_.front().second)) deadlines_.Pop();
  return DueS();
}

void Dispatcher::Open(Entry* entry) {
  open_[entry->id] = entry;
  ++entry->share->open;
  entry->before = last_;
  (last_ != nullptr ? last_->after : first_) = entry;
  last_ = entry;
}

// It has left `open_`.
void Dispatcher::Close(Entry* entry) {
  --entry->share->open;
  (entry->before != nullptr ? entry->before->after : first_) = entry->after;
  (entry->after != nullptr ? entry->after->before : last_) = entry->before;
  entry->before = entry->after = nullptr;
  entry->open = false;
}

}  // namespace deeprecsys::rules
