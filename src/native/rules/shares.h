// Which model is next of those that wait: `rules/shares.py`, which is the specification and says
// why.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rules/line.h"

namespace deeprecsys::rules {

// Cost that a model may be behind.
inline constexpr double kModelCredit = 0.5;

// One model's: items that wait for the cores.
class Share {
 public:
  Share(Entries* entries, double line_credit, Items number, double weight);

  // Where queries of this level wait.
  Line* LineOf(std::int64_t level);
  // The first query with items that wait; null: nobody's.
  Entry* Head();
  // Of what waits; and of it, what would go before a new query.
  double Cost() const;
  double Ahead(std::int64_t level, const std::string& client, std::int64_t priority,
               Items size) const;

  const Items number;
  double weight;
  Items open = 0;  // queries
  double clock = 0.0;  // cost that was executed, over weight
  Items items = 0;

 private:
  Entries* entries_;
  double line_credit_;
  std::map<std::int64_t, std::unique_ptr<Line>> lines_;  // by level; nearly always one
};

class Shares {
 public:
  Shares(Entries* entries, double line_credit);

  Share* Of(Items model) { return all_.at(static_cast<std::size_t>(model)).get(); }
  // Throws std::invalid_argument for a weight that is not positive.
  // One more; its number, which may be that of one that was removed.
  Items Add(double weight);
  // One of which nothing is open.
  void Remove(Items model) { free_.push_back(model); }
  void Weigh(Items model, double weight);
  // Of those that wait the one furthest behind, of equals the first; null: nobody waits.
  Share* Next();
  // So many items of it more (or fewer) wait.
  void Wait(Share* share, Items items);
  // Items of it begin.
  void Take(Share* share, double cost, Items items);
  double Cost() const;
  // Of the others' cost that waits, what goes before so much of this one's.
  double Others(const Share& own, double cost) const;

 private:
  Entries* entries_;
  double line_credit_;
  std::vector<std::unique_ptr<Share>> all_;
  std::vector<Items> free_;
  double clock_ = 0.0;
};

}  // namespace deeprecsys::rules
