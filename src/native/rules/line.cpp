#include "rules/line.h"

#include <algorithm>

namespace deeprecsys::rules {

namespace {

// Of more clients than these, what is before a query is estimated from so many.
constexpr std::size_t kLookedAt = 64;

}  // namespace

Entry* Entries::Make() {
  if (free_.empty()) return &all_.emplace_back();
  Entry* entry = free_.back();
  free_.pop_back();
  std::string client = std::move(entry->client);  // with what it has allocated
  client.clear();
  *entry = Entry{};
  entry->client = std::move(client);
  return entry;
}

Line::~Line() {
  for (auto& [_, client] : clients_) {
    for (auto& [_, queue] : client->queues) Empty(queue.get());
  }
}

void Line::Add(Entry* entry, bool first) {
  Client* client = ClientOf(entry->client);
  Queue* queue = QueueOf(client, entry->priority);
  if (first) {
    queue->entries.push_front(entry);
  } else {
    queue->entries.push_back(entry);
  }
  entry->queued = true;
  const Items items = entry->size - entry->next;
  Wait(client, queue, items, static_cast<double>(items) * entry->item_cost);
  if (!client->listed) {
    client->clock = std::max(client->clock, clock_ - credit_);
    client->listed = true;
    next_.Push({client->clock, ++listings_, client});
  }
}

Entry* Line::Head() {
  while (!next_.empty()) {
    Client* client = next_.front().client;
    if (Entry* entry = HeadOf(client)) return entry;
    next_.Pop();
    client->listed = false;
  }
  return nullptr;
}

void Line::Take(Entry* entry, Items items) {
  const Listing listing = next_.front();
  Client* client = listing.client;
  Queue* queue = QueueOf(client, entry->priority);
  entry->next += items;
  if (entry->next == entry->size) {
    queue->entries.pop_front();
    entry->queued = false;
  }
  Wait(client, queue, -items, static_cast<double>(-items) * entry->item_cost);
  clock_ = std::max(clock_, listing.clock);
  client->clock = listing.clock + static_cast<double>(items);
  if (client->items == 0) {
    next_.Pop();
    client->listed = false;
  } else {
    next_.Replace({client->clock, listing.number, client});
  }
}

void Line::Forget(Entry* entry) {
  Client* client = ClientOf(entry->client);
  Queue* queue = QueueOf(client, entry->priority);
  const Items items = entry->next - entry->size;
  Wait(client, queue, items, static_cast<double>(items) * entry->item_cost);
  SweepQueue(queue);
  if (client->items == 0) SweepClients();
}

double Line::Ahead(const std::string& name, std::int64_t priority, Items size) const {
  const auto found = clients_.find(name);
  const Client* client = found == clients_.end() ? nullptr : found->second.get();
  Items items = 0;
  double cost = 0.0;
  const double least = clock_ - credit_;
  double until = least;
  if (client != nullptr) {
    for (const auto& [level, queue] : client->queues) {
      if (level > priority) continue;
      items += queue->items;
      cost += queue->cost;
    }
    until = std::max(client->clock, least);
  }
  until = until + static_cast<double>(items) + static_cast<double>(size);
  double others = 0.0;
  const auto& listed = next_.data();
  for (std::size_t i = 0; i < std::min(listed.size(), kLookedAt); ++i) {
    const Client* other = listed[i].client;
    if (other == client || other->items == 0) continue;
    const double share = std::max(until - listed[i].clock, 0.0) / static_cast<double>(other->items);
    others += other->cost * std::min(share, 1.0);
  }
  const double scale = static_cast<double>(listed.size()) / static_cast<double>(kLookedAt);
  return cost + others * std::max(1.0, scale);
}

// Clients of which nothing waits are forgotten: what they are ahead is a request.
Line::Client* Line::ClientOf(const std::string& name) {
  if (name.empty() && nobody_ != nullptr) return nobody_;
  const auto found = clients_.find(name);
  if (found != clients_.end()) return found->second.get();
  if (clients_.size() > kSweep + 2 * next_.size()) {
    std::erase_if(clients_, [this](auto& item) {
      Client* client = item.second.get();
      if (client->listed) return false;
      for (auto& [_, queue] : client->queues) Empty(queue.get());
      if (client == nobody_) nobody_ = nullptr;
      return true;
    });
  }
  Client* client = (clients_[name] = std::make_unique<Client>()).get();
  if (name.empty()) nobody_ = client;
  return client;
}

Queue* Line::QueueOf(Client* client, std::int64_t priority) {
  auto& queues = client->queues;
  for (auto& [level, queue] : queues) {
    if (level == priority) return queue.get();
  }
  std::erase_if(queues, [this](auto& item) {
    if (item.second->items != 0) return false;
    Empty(item.second.get());
    return true;
  });
  const auto at = std::find_if(queues.begin(), queues.end(),
                               [&](const auto& item) { return item.first > priority; });
  return queues.insert(at, {priority, std::make_unique<Queue>()})->second.get();
}

Entry* Line::HeadOf(Client* client) {
  for (auto& [_, queue] : client->queues) {
    while (!queue->entries.empty()) {
      Entry* entry = queue->entries.front();
      if (entry->open) return entry;
      queue->entries.pop_front();
      --queue->stale;
      entry->queued = false;
      entries_->Release(entry);
    }
  }
  return nullptr;
}

// So many items more (or fewer) wait. Sums of fractions do not return to nothing by themselves, so
// they are told to.
void Line::Wait(Client* client, Queue* queue, Items items, double cost) {
  queue->items += items;
  queue->cost = queue->items != 0 ? queue->cost + cost : 0.0;
  client->items += items;
  client->cost = client->items != 0 ? client->cost + cost : 0.0;
  items_ += items;
  cost_ = items_ != 0 ? cost_ + cost : 0.0;
}

// It is about to go, with what lies in it.
void Line::Empty(Queue* queue) {
  for (Entry* entry : queue->entries) {
    entry->queued = false;
    entries_->Release(entry);
  }
  queue->entries.clear();
}

// One more was dropped.
void Line::SweepQueue(Queue* queue) {
  ++queue->stale;
  if (queue->stale <= kSweep || queue->stale <= queue->entries.size() / 2) return;
  std::erase_if(queue->entries, [this](Entry* entry) {
    if (entry->open) return false;
    entry->queued = false;
    entries_->Release(entry);
    return true;
  });
  queue->stale = 0;
}

// One more client is listed of which nothing waits.
void Line::SweepClients() {
  ++hollow_;
  if (hollow_ <= kSweep || hollow_ <= next_.size() / 2) return;
  next_.Filter([](const Listing& listing) {
    listing.client->listed = listing.client->items != 0;
    return listing.client->listed;
  });
  hollow_ = 0;
}

}  // namespace deeprecsys::rules
