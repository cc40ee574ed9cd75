// What the dispatcher reads of a policy: `core.Policy` without its Python.
#pragma once

#include <cstdint>

namespace deeprecsys::rules {

using Items = std::int64_t;
using QueryId = std::int64_t;

inline constexpr Items kNone = -1;  // where Python says None

struct Policy {
  Items batch_size = 128;
  Items offload_threshold = kNone;
  Items most_items = 1024;
  Items offload_backlog = kNone;
  Items workers = kNone;
  std::int64_t execution = 0;  // which of the owner's: they are only compared
  bool adaptive = false;

  bool operator==(const Policy&) const = default;
};

// How many items a free worker reaches for, `idle` workers (itself among them) being free.
inline Items RequestItems(const Policy& policy, Items queued_items, Items idle) {
  if (!policy.adaptive) return policy.batch_size;
  const Items share = (queued_items + idle - 1) / idle;
  const Items wanted = policy.batch_size > share ? policy.batch_size : share;
  return wanted < policy.most_items ? wanted : policy.most_items;
}

// Does a query of so many items go to an accelerator, where there is one?
inline bool Offloads(const Policy& policy, Items size) {
  return policy.offload_threshold != kNone && size >= policy.offload_threshold;
}

// The same policy for a query that must not be cut.
inline Policy Uncut(Policy policy, Items size) {
  if (size <= policy.batch_size && !policy.adaptive) return policy;
  if (size > policy.batch_size) policy.batch_size = size;
  policy.adaptive = false;
  return policy;
}

}  // namespace deeprecsys::rules
