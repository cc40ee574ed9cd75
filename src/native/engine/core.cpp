#include "engine/core.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <span>
#include <utility>

#include "engine/clock.h"

namespace deeprecsys::engine {

namespace {

Owner* OwnerOf(const Slice& slice) { return static_cast<Owner*>(slice.owner); }

// How long a worker that found nothing looks for something before it lies down: what comes
// meanwhile it takes without being woken, which costs whoever hands it over a system call.
constexpr double kHotS = 5e-6;
// Of native requests, how many admission may learn of late: its pace has forgotten older ones.
constexpr std::size_t kPaces = 512;

using Guard = std::lock_guard<Lock>;

}  // namespace

struct Core::Bench {
  std::vector<Slice> pulled;
  std::vector<Slice> python;
  std::vector<Slice> done;       // natively, to be forgotten
  std::vector<Slice> forgotten;  // nothing of theirs is used any more
  std::vector<Piece> pieces;
  std::vector<QueryId> expired;
  double watch_s = rules::kNever;
  bool failed = false;
};

Core::Core(Items max_queued_items, std::vector<Items> most_items, int workers, int most_waking)
    : executed(workers, 0),
      busy_s(workers, 0.0),
      rules_(max_queued_items, std::move(most_items)),
      sleepers_(workers, most_waking) {
  paces_.reserve(kPaces);
}

Items Core::Add(rules::Arrival arrival) {
  const Items accelerator = rules_.Add(arrival);
  next_id_ = std::max(next_id_, arrival.id + 1);
  arrivals_.fetch_add(1, std::memory_order_release);
  return accelerator;
}

QueryId Core::Reserve(QueryId count) {
  const QueryId first = next_id_;
  next_id_ += count;
  return first;
}

int Core::Wake() {
  if (rules_.queued_items() == 0 || !sleepers_.any_idle()) return kNobody;
  const int worker = sleepers_.Wake();
  // Who is hot or waking looks at once; who is busy with what is brief is only expected to.
  if (worker == kNobody && sleepers_.hot == 0 && sleepers_.waking == 0) {
    doubted_ = true;
    if (look_s_ == rules::kNever) {
      look_s_ = Now() + kStallS;
      asked_ = false;
    }
  }
  return worker;
}

double Core::TakeWatch() {
  if (asked_) return rules::kNever;
  asked_ = true;
  return look_s_;
}

double Core::Unstick(double now) {
  int worker = kNobody;
  double look_s;
  {
    const Guard guard(lock_);
    if (now < look_s_) return look_s_;
    const bool waits = rules_.queued_items() != 0 && sleepers_.any_idle();
    if (waits) worker = sleepers_.Wake(now - sleepers_.looked_s > kStallS / 2);
    look_s = look_s_ = waits || doubted_ ? now + kStallS : rules::kNever;
    doubted_ = false;
    asked_ = true;
  }
  Open(worker);
  return look_s;
}

bool Core::WaitQuiet(double timeout_s, Items model) {
  std::unique_lock<Lock> lock(lock_);
  ++waiting_for_quiet_;
  const auto quiet = [this, model] {
    return model == rules::kNone ? nothing() : this->quiet(model);
  };
  bool found = true;
  if (timeout_s == rules::kNever) {
    quiet_.wait(lock, quiet);
  } else {
    found = quiet_.wait_for(lock, std::chrono::duration<double>(timeout_s), quiet);
  }
  --waiting_for_quiet_;
  return found;
}

void Core::NotifyQuiet() {
  if (waiting_for_quiet_ != 0) quiet_.notify_all();
}

bool Core::Serve(Seat* seat, Host* host) {
  PreciseTimers();
  Bench bench;
  State state = State::kBusy;
  for (;;) {
    const Then then = Next(seat, state, &bench, host);
    for (const Slice& slice : bench.done) OwnerOf(slice)->Forget(slice.query);
    bench.forgotten.swap(bench.done);
    if (!bench.expired.empty()) host->Expired(bench.expired);
    if (bench.watch_s < rules::kNever) host->Watch(bench.watch_s);
    switch (then) {
      case Then::kExecute:
        state = State::kBusy;
        if (!seat->executing.empty()) {
          host->Rest();
          ExecuteNative(seat, &bench);
        }
        if (!bench.python.empty() && !ExecutePython(seat, &bench, host)) {
          host->Rest();
          const Guard guard(lock_);
          Over(bench.python);
          return false;
        }
        break;
      case Then::kLookAgain:
        state = State::kHot;
        host->Rest();
        SpinBriefly();
        break;
      case Then::kSleep:
        state = State::kWoken;
        host->Rest();
        sleepers_.gate(seat->number).Pass();
        break;
      case Then::kLeave: {
        const Guard guard(lock_);
        Over(bench.forgotten);
        return true;
      }
      case Then::kLost:
        return false;
    }
  }
}

// A thread that has the lock may be waiting for what the host holds.
void Core::LockBeside(Host* host) {
  if (lock_.try_lock()) return;
  host->Rest();
  lock_.lock();
}

// One hold of the lock between two requests: what is done with the last, and the next.
Core::Then Core::Next(Seat* seat, State state, Bench* bench, Host* host) {
  int other = kNobody;
  Then then = Then::kExecute;
  LockBeside(host);
  {
    const Guard guard(lock_, std::adopt_lock);
    Over(bench->python);
    bench->python.clear();
    Over(bench->forgotten);  // and not before, for whoever waits for that unmakes them
    bench->forgotten.clear();
    if (IsLost(seat)) return Then::kLost;
    const double now = Now();
    if (!seat->executing.empty()) Finish(seat, bench, now);
    if (state == State::kHot) --sleepers_.hot;
    if (state == State::kWoken) --sleepers_.waking;
    bench->expired.clear();
    if (rules_.DueS() <= now) Expire(now, &bench->expired);
    bench->pulled.clear();
    if (seat->number < sleepers_.wanted) rules_.Pull(1 + sleepers_.free(), &bench->pulled);
    sleepers_.looked_s = now;
    if (!bench->pulled.empty()) {
      for (const Slice& slice : bench->pulled) {
        (slice.owner != nullptr ? seat->executing : bench->python).push_back(slice);
        ++running_[slice.model];
      }
      if (!seat->executing.empty()) seat->began_s.store(now, std::memory_order_relaxed);
      other = Wake();
    } else if (ending_) {
      then = Then::kLeave;
    } else if (state == State::kBusy) {
      ++sleepers_.hot;
      then = Then::kLookAgain;
    } else {
      sleepers_.LieDown(seat->number);
      other = Wake();  // where it is parked, and was woken as one of the others
      NotifyQuiet();
      then = Then::kSleep;
    }
    bench->watch_s = TakeWatch();
  }
  Open(other);
  return then;
}

// Has another this worker's place? Then what it executed is over, but nobody waits for it.
bool Core::IsLost(Seat* seat) {
  if (!seat->lost) return false;
  for (const Slice& slice : seat->executing) OwnerOf(slice)->Late(slice);
  Over(seat->executing);
  return true;
}

// They are executed no longer.
void Core::Over(std::span<const Slice> slices) {
  for (const Slice& slice : slices) {
    --running_[slice.model];
    if (waiting_for_quiet_ != 0 && quiet(slice.model)) quiet_.notify_all();
  }
}

// Where it was joined with native ones, those are finished first.
bool Core::ExecutePython(Seat* seat, Bench* bench, Host* host) {
  if (!seat->executing.empty()) {
    const Guard guard(lock_);
    if (IsLost(seat)) return false;
    Finish(seat, bench, Now());
  }
  return host->Execute(bench->python);
}

// Slices of one executor are one call; `Next` finishes them.
void Core::ExecuteNative(Seat* seat, Bench* bench) {
  const double began_s = seat->began_s.load(std::memory_order_relaxed);
  const auto& slices = seat->executing;
  bench->failed = false;
  for (std::size_t at = 0; at < slices.size();) {
    const Executor& executor = OwnerOf(slices[at])->executor();
    bench->pieces.clear();
    for (; at < slices.size() && OwnerOf(slices[at])->executor().self == executor.self; ++at) {
      bench->pieces.push_back(OwnerOf(slices[at])->Begin(slices[at], began_s));
    }
    const auto& pieces = bench->pieces;
    if (executor.execute(executor.self, pieces.data(), pieces.size()) == 0) continue;
    bench->failed = true;
    if (executor.why != nullptr) OwnerOf(slices[at - 1])->Failed(executor.why(executor.self));
  }
}

// now: read under the lock, so that of a query's requests none is over after the last.
void Core::Finish(Seat* seat, Bench* bench, double now) {
  const double began_s = seat->began_s.load(std::memory_order_relaxed);
  const double took_s = now - began_s;
  if (bench->failed) {
    FailNative(seat->executing, Status::kFailed);
    for (const Slice& slice : seat->executing) OwnerOf(slice)->Late(slice);
    Over(seat->executing);
  } else {
    ++executed[seat->number];
    busy_s[seat->number] += took_s;
    Items items = 0;
    for (const Slice& slice : seat->executing) {
      Owner* owner = OwnerOf(slice);
      items += slice.hi - slice.lo;
      owner->Trace(slice, seat->number, began_s, now);
      if (rules_.Finish(slice.query, slice.hi - slice.lo)) {
        owner->Finish(slice.query, seat->number, now);
        bench->done.push_back(slice);
        continue;
      }
      if (!rules_.IsOpen(slice.query)) owner->Late(slice);
      Over({&slice, 1});
    }
    const Slice& first = seat->executing.front();
    const auto& policy = OwnerOf(first)->policy();
    const Items most = policy.adaptive ? policy.most_items : policy.batch_size;
    const Pace pace{first.model, most, items, took_s};
    if (paces_.size() < kPaces) {
      paces_.push_back(pace);
    } else {
      paces_[paces_at_++ % kPaces] = pace;
    }
  }
  seat->executing.clear();
  seat->began_s.store(0.0, std::memory_order_relaxed);
}

void Core::FailNative(const std::vector<Slice>& slices, Status status) {
  for (const Slice& slice : slices) DropNative(slice.query, OwnerOf(slice), status);
}

bool Core::DropNative(QueryId query, Owner* owner, Status status) {
  const Items executing = rules_.Executing(query);
  if (!rules_.Drop(query)) return false;
  owner->Drop(query, status, executing);
  return true;
}

void Core::Expire(double now, std::vector<QueryId>* expired) {
  std::vector<rules::Expired> due;
  rules_.Expire(now, &due, expired == nullptr);
  for (const auto& [query, owner, executing] : due) {
    if (owner == nullptr) {
      expired->push_back(query);
    } else {
      static_cast<Owner*>(owner)->Drop(query, Status::kExpired, executing);
    }
  }
  if (!due.empty()) NotifyQuiet();
}

std::vector<Pace> Core::TakePaces() {
  std::vector<Pace> taken = std::exchange(paces_, {});
  paces_.reserve(kPaces);
  std::rotate(taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(paces_at_ % kPaces),
              taken.end());
  paces_at_ = 0;
  return taken;
}

void Core::Count(int worker, double took_s) {
  ++executed[worker];
  busy_s[worker] += took_s;
  sleepers_.typical_s = 0.8 * std::min(sleepers_.typical_s, 1.0) + 0.2 * took_s;
}

void Core::SpinBriefly() {
  const std::uint64_t seen = arrivals_.load(std::memory_order_acquire);
  const double until_s = Now() + kHotS;
  while (arrivals_.load(std::memory_order_acquire) == seen && Now() < until_s) Pause();
}

void Core::End() {
  std::vector<int> sleeping;
  {
    const Guard guard(lock_);
    ending_ = true;
    sleeping = sleepers_.EverybodyUp();
  }
  for (const int worker : sleeping) Open(worker);
}

bool Core::GiveUp(Seat* seat, double began_s) {
  const Guard guard(lock_);
  if (seat->lost || seat->executing.empty() || seat->began_s.load() != began_s) return false;
  seat->lost = true;
  FailNative(seat->executing, Status::kLost);
  NotifyQuiet();
  return true;
}

void Core::DropOwned(Status status, Items model) {
  for (const QueryId query : rules_.OpenQueries(model)) {
    if (void* owner = rules_.OwnerOf(query)) {
      DropNative(query, static_cast<Owner*>(owner), status);
    }
  }
  NotifyQuiet();
}

}  // namespace deeprecsys::engine
