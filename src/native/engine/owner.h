// Whose a query is that needs no Python: a run's, which plays a schedule, or a client's.
#pragma once

#include <cstdint>

#include "engine/executor.h"
#include "rules/dispatch.h"

namespace deeprecsys::engine {

using rules::Items;
using rules::QueryId;
using rules::Slice;

// `core.Status`; and that of a query whose worker hangs, which failed.
enum class Status : std::int8_t { kOk, kFailed, kExpired, kRejected, kCancelled, kPending, kLost };

// What slices point to. All but `Begin`, `Failed` and `Forget` are called with the core's lock held.
class Owner {
 public:
  virtual ~Owner() = default;
  // Neighbouring slices of one executor are one call of it.
  virtual const Executor& executor() const = 0;
  virtual const rules::Policy& policy() const = 0;
  // A slice begins: what is to be executed.
  virtual Piece Begin(const Slice& slice, double now) = 0;
  // The request with a slice of it failed; it is dropped in a moment.
  virtual void Failed(const char* /*why*/) {}
  // A slice is over.
  virtual void Trace(const Slice&, int /*worker*/, double /*start_s*/, double /*finish_s*/) {}
  // All of the query is; then, by the same thread and without the lock, `Forget`.
  virtual void Finish(QueryId query, int worker, double now) = 0;
  virtual void Forget(QueryId query) = 0;
  // It ends otherwise. executing: so many of its items still are, and the owner and what it
  // prepared must outlive them; each slice is told by `Late` when it is over, if it ever is.
  virtual void Drop(QueryId query, Status status, Items executing) = 0;
  virtual void Late(const Slice& slice) = 0;
};

}  // namespace deeprecsys::engine
