// A schedule, played: the open-loop generator, and what became of each query.
//
// Queries are handed over at their time, whatever became of the others; nobody waits for an answer.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/core.h"
#include "engine/executor.h"

namespace deeprecsys::engine {

// A part of the inputs that queries are windows of (`engine/pool.py`): `period` rows, and as many
// more as a window has, from the one at `start`.
struct Column {
  const char* rows;
  std::int64_t row_bytes;
  std::int64_t period;
  std::int64_t start;
  bool shared;
};

class Pool {
 public:
  explicit Pool(std::vector<Column> columns = {}, std::int64_t users = 1)
      : columns_(std::move(columns)),
        users_(users),
        data_(columns_.size()),
        rows_(columns_.size()) {}

  // The inputs of `size` candidates from `offset`, until it is asked again. scores: where they go.
  Window At(std::int64_t offset, std::int64_t size, void* scores = nullptr);

 private:
  std::vector<Column> columns_;
  std::int64_t users_;
  std::vector<const void*> data_;
  std::vector<std::int64_t> rows_;
};

// What is asked, [queries] each; and what is filled in, likewise. Times on the engine's clock.
struct Columns {
  std::int64_t queries = 0;
  const double* arrival_s = nullptr;
  const std::int64_t* size = nullptr;
  const std::int64_t* offset = nullptr;
  const double* cost = nullptr;
  double* submit_s = nullptr;
  double* start_s = nullptr;
  double* finish_s = nullptr;
  std::int32_t* worker = nullptr;
  std::int8_t* status = nullptr;
};

// A request that was executed.
struct Traced {
  std::int64_t row, lo, hi;
  std::int32_t worker;
  double start_s, finish_s;
};

class Run : public Owner {
 public:
  // whole: queries are not cut.
  Run(Core* core, Executor executor, Pool pool, Columns columns, rules::Policy policy, bool whole,
      bool traced, Items model = 0);
  ~Run() override;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Hands queries over until all are, or it is stopped, or the engine is closed. began_s: when the
  // schedule begins.
  void Play(double began_s);
  void Stop() { stopped_.store(true, std::memory_order_relaxed); }
  // Cancels what is not finished, of what was handed over.
  void Cancel();
  std::int64_t handed() const { return handed_.load(std::memory_order_acquire); }
  // The engine was closed meanwhile.
  bool closed() const { return closed_.load(); }
  const std::vector<Traced>& trace() const { return trace_; }
  // Why the first request that failed did; empty: none has. When it is over.
  const std::string& why() const { return why_; }
  // Waits until no worker executes anything of it, at most so long; false: some do still, or hang,
  // so it must outlive them, and gives nothing back.
  bool WaitOver(double timeout_s);

  const Executor& executor() const override { return executor_; }
  const rules::Policy& policy() const override { return policy_; }
  Piece Begin(const Slice& slice, double now) override;
  void Failed(const char* why) override;
  void Trace(const Slice& slice, int worker, double start_s, double finish_s) override;
  void Finish(QueryId query, int worker, double now) override;
  // Gives its inputs back.
  void Forget(QueryId query) override;
  // What was prepared is given back at the end.
  void Drop(QueryId query, Status status, Items executing) override;
  void Late(const Slice& slice) override { late_ -= slice.hi - slice.lo; }

 private:
  std::int64_t Row(QueryId query) const { return query - first_; }
  bool WaitUntil(double at_s) const;
  void HandOver(std::int64_t row);

  Core* core_;
  Executor executor_;
  Pool pool_;
  Columns columns_;
  rules::Policy policy_;
  bool whole_;
  bool traced_;
  Items model_;
  Items late_ = 0;  // items of dropped queries that are executed still
  QueryId first_ = 0;
  std::vector<void*> prepared_;  // by row
  std::vector<Traced> trace_;
  std::string why_;
  std::atomic<std::int64_t> handed_{0};
  std::atomic<bool> stopped_{false};
  std::atomic<bool> closed_{false};
};

}  // namespace deeprecsys::engine
