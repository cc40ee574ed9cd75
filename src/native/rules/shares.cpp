#include "rules/shares.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace deeprecsys::rules {

namespace {

// Of an item of which no cost is known: beside real ones it does not count.
constexpr double kLeast = 1e-9;

double Checked(double weight) {
  if (weight > 0 && std::isfinite(weight)) return weight;
  throw std::invalid_argument("a model's weight must be positive");
}

}  // namespace

Share::Share(Entries* entries, double line_credit, Items number, double weight)
    : number(number), weight(weight), entries_(entries), line_credit_(line_credit) {
  LineOf(0);
}

Line* Share::LineOf(std::int64_t level) {
  const auto found = lines_.find(level);
  if (found != lines_.end()) return found->second.get();
  if (lines_.size() >= kSweep) {
    std::erase_if(lines_, [](const auto& item) { return item.second->items() == 0; });
  }
  return (lines_[level] = std::make_unique<Line>(entries_, line_credit_)).get();
}

Entry* Share::Head() {
  for (auto& [_, line] : lines_) {
    if (line->items() == 0) continue;
    if (Entry* entry = line->Head()) return entry;
  }
  return nullptr;
}

double Share::Cost() const {
  double cost = 0.0;
  for (const auto& [_, line] : lines_) cost += line->cost();
  return cost;
}

double Share::Ahead(std::int64_t level, const std::string& client, std::int64_t priority,
                    Items size) const {
  double cost = 0.0;
  for (const auto& [other, line] : lines_) {
    if (other < level) {
      cost += line->cost();
    } else if (other == level) {
      cost += line->Ahead(client, priority, size);
    }
  }
  return cost;
}

Shares::Shares(Entries* entries, double line_credit)
    : entries_(entries), line_credit_(line_credit) {
  Add(1.0);
}

Items Shares::Add(double weight) {
  Checked(weight);
  auto number = static_cast<Items>(all_.size());
  if (free_.empty()) {
    all_.emplace_back();
  } else {
    number = free_.back();
    free_.pop_back();
  }
  all_[static_cast<std::size_t>(number)] =
      std::make_unique<Share>(entries_, line_credit_, number, weight);
  return number;
}

void Shares::Weigh(Items model, double weight) { Of(model)->weight = Checked(weight); }

Share* Shares::Next() {
  Share* next = nullptr;
  for (const auto& share : all_) {
    if (share->items != 0 && (next == nullptr || share->clock < next->clock)) next = share.get();
  }
  return next;
}

void Shares::Wait(Share* share, Items items) {
  if (share->items == 0) share->clock = std::max(share->clock, clock_ - kModelCredit);
  share->items += items;
}

void Shares::Take(Share* share, double cost, Items items) {
  clock_ = std::max(clock_, share->clock);
  share->clock += std::max(cost, kLeast * static_cast<double>(items)) / share->weight;
}

double Shares::Cost() const {
  double cost = 0.0;
  for (const auto& share : all_) cost += share->Cost();
  return cost;
}

double Shares::Others(const Share& own, double cost) const {
  if (all_.size() == 1) return 0.0;
  const double until = std::max(own.clock, clock_ - kModelCredit) + cost / own.weight;
  double before = 0.0;
  for (const auto& share : all_) {
    if (share.get() == &own) continue;
    before += std::min(share->Cost(), std::max(0.0, until - share->clock) * share->weight);
  }
  return before;
}

}  // namespace deeprecsys::rules
