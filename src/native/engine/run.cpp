#include "engine/run.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "engine/clock.h"

namespace deeprecsys::engine {

namespace {

// Long gaps are slept in pieces, so that a stop is noticed.
constexpr double kNapS = 0.05;
constexpr double kPollS = 1e-3;
// Before each arrival the generator is awake for so long. Asleep until then it was late by a median
// of 20 us; at 1,000 queries/s this is 1 % of two cores.
constexpr double kAwakeS = 30e-6;

// Who looks at the columns meanwhile sees each value whole, and a status only after its times.
template <typename T>
void Write(T* column, std::int64_t row, T value) {
  std::atomic_ref<T>(column[row]).store(value, std::memory_order_release);
}

// Of which user a window is: by Fibonacci hashing, as `pool.Pool.user`.
std::int64_t UserOf(std::int64_t offset, std::int64_t users) {
  const auto hash = (static_cast<std::uint64_t>(offset) * 0x9E3779B1ULL) & 0xFFFFFFFFULL;
  return static_cast<std::int64_t>((hash * static_cast<std::uint64_t>(users)) >> 32);
}

}  // namespace

Window Pool::At(std::int64_t offset, std::int64_t size, void* scores) {
  const std::int64_t user = UserOf(offset, users_);
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const Column& column = columns_[i];
    const std::int64_t first = (column.start + (column.shared ? user : offset)) % column.period;
    data_[i] = column.rows + first * column.row_bytes;
    rows_[i] = column.shared ? 1 : size;
  }
  return {size, columns_.size(), data_.data(), rows_.data(), scores};
}

Run::Run(Core* core, Executor executor, Pool pool, Columns columns, rules::Policy policy,
         bool whole, bool traced, Items model)
    : core_(core),
      executor_(executor),
      pool_(std::move(pool)),
      columns_(columns),
      policy_(policy),
      whole_(whole),
      traced_(traced),
      model_(model),
      prepared_(columns.queries, nullptr) {
  const std::lock_guard<Lock> guard(core_->lock());
  first_ = core_->Reserve(columns.queries);
}

Run::~Run() {
  if (late_ != 0) return;
  for (void* prepared : prepared_) {
    if (prepared != nullptr) executor_.forget(executor_.self, prepared);
  }
}

void Run::Play(double began_s) {
  PreciseTimers();
  for (std::int64_t row = 0; row < columns_.queries; ++row) {
    if (!WaitUntil(began_s + columns_.arrival_s[row])) return;
    HandOver(row);
    if (closed()) return;
    handed_.store(row + 1, std::memory_order_release);
  }
}

// False: it is stopped.
bool Run::WaitUntil(double at_s) const {
  for (double now = Now(); now < at_s; now = Now()) {
    if (stopped_.load(std::memory_order_relaxed)) return false;
    SleepUntil(std::min(at_s, now + kNapS), kAwakeS);
  }
  return !stopped_.load(std::memory_order_relaxed);
}

void Run::HandOver(std::int64_t row) {
  const double now = Now();
  Write(columns_.submit_s, row, now);
  const std::int64_t size = columns_.size[row];
  if (size == 0) {  // needs no worker
    Write(columns_.start_s, row, now);
    Write(columns_.finish_s, row, now);
    Write(columns_.status, row, static_cast<std::int8_t>(Status::kOk));
    return;
  }
  const Window window = pool_.At(columns_.offset[row], size);
  prepared_[row] = executor_.prepare(executor_.self, &window);
  if (prepared_[row] == nullptr) {
    Write(columns_.status, row, static_cast<std::int8_t>(Status::kFailed));
    return;
  }
  rules::Arrival arrival;
  arrival.id = first_ + row;
  arrival.size = size;
  arrival.policy = whole_ ? rules::Uncut(policy_, size) : policy_;
  arrival.cost = columns_.cost[row];
  arrival.owner = this;
  arrival.model = model_;
  int worker = kNobody;
  {
    const std::lock_guard<Lock> guard(core_->lock());
    if (core_->closing) {
      closed_.store(true);
      return;
    }
    try {
      core_->Add(std::move(arrival));
      worker = core_->Wake();
    } catch (const rules::QueueFull&) {
      Write(columns_.status, row, static_cast<std::int8_t>(Status::kRejected));
    }
  }
  core_->Open(worker);
}

void Run::Cancel() {
  const std::lock_guard<Lock> guard(core_->lock());
  for (std::int64_t row = 0; row < handed(); ++row) {
    core_->DropNative(first_ + row, this, Status::kCancelled);
  }
  core_->NotifyQuiet();
}

Piece Run::Begin(const Slice& slice, double now) {
  const std::int64_t row = Row(slice.query);
  if (slice.lo == 0) Write(columns_.start_s, row, now);
  return {prepared_[row], slice.lo, slice.hi};
}

void Run::Failed(const char* why) {
  const std::lock_guard<Lock> guard(core_->lock());
  if (why_.empty()) why_ = why;
}

void Run::Trace(const Slice& slice, int worker, double start_s, double finish_s) {
  if (!traced_) return;
  trace_.push_back({Row(slice.query), slice.lo, slice.hi, worker, start_s, finish_s});
}

void Run::Finish(QueryId query, int worker, double now) {
  const std::int64_t row = Row(query);
  Write(columns_.finish_s, row, now);
  Write(columns_.worker, row, static_cast<std::int32_t>(worker));
  Write(columns_.status, row, static_cast<std::int8_t>(Status::kOk));
}

bool Run::WaitOver(double timeout_s) {
  const double until_s = Now() + timeout_s;
  for (;;) {
    {
      const std::lock_guard<Lock> guard(core_->lock());
      if (late_ == 0) return true;
    }
    if (Now() > until_s) return false;
    SleepUntil(Now() + kPollS, 0.0);
  }
}

void Run::Drop(QueryId query, Status status, Items executing) {
  late_ += executing;
  if (status == Status::kLost) status = Status::kFailed;
  Write(columns_.status, Row(query), static_cast<std::int8_t>(status));
}

void Run::Forget(QueryId query) {
  void* prepared = std::exchange(prepared_[Row(query)], nullptr);
  executor_.forget(executor_.self, prepared);
}

}  // namespace deeprecsys::engine
