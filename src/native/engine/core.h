// Everything that executes for one engine: the rules and what is open, under one lock, and the life
// of its workers.
//
// It starts no threads: whoever does (`engine/workers.py`) hands each over by `Serve`, which comes
// back when the engine ends. Queries are of two kinds. Those that have an `Owner` are native from
// beginning to end; the others are Python's, which a `Host` executes and answers. No lock is held
// while anything executes, and nobody takes the GIL while holding the lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "engine/lock.h"
#include "engine/owner.h"
#include "engine/sleepers.h"
#include "rules/dispatch.h"

namespace deeprecsys::engine {

// Who executes and answers the queries that are Python's.
class Host {
 public:
  virtual ~Host() = default;
  // False: another has this worker's place by now.
  virtual bool Execute(const std::vector<Slice>& slices) = 0;
  virtual void Expired(const std::vector<QueryId>& queries) = 0;
  // `Unstick` is to be called at that time.
  virtual void Watch(double due_s) = 0;
  // Lets go of what it holds from one call to the next, the GIL: called before its thread executes
  // natively, waits or sleeps.
  virtual void Rest() {}
};

// A thread's place among the workers, which it may have lost to another while it hung.
struct Seat {
  explicit Seat(int number) : number(number) {}
  const int number;
  // Of what it executes natively: since when, 0 for nothing, and what. Changed under the lock.
  std::atomic<double> began_s{0.0};
  std::vector<Slice> executing;
  bool lost = false;
};

// How long a native request took: what admission learns of. most: items that its policy's hold.
struct Pace {
  Items model;
  Items most;
  Items items;
  double took_s;
};

class Core {
 public:
  Core(Items max_queued_items, std::vector<Items> most_items, int workers, int most_waking);

  // Members below this are used with it held, unless they say that they take it.
  Lock& lock() { return lock_; }
  rules::Dispatcher& rules() { return rules_; }
  Sleepers& sleepers() { return sleepers_; }

  // A query comes; answers for which accelerator. Throws QueueFull.
  Items Add(rules::Arrival arrival);
  QueryId next_id() const { return next_id_; }
  // So many ids in a row; the first.
  QueryId Reserve(QueryId count);

  // Whose gate to open once the lock is released, if anybody's.
  int Wake();
  void Open(int worker) {
    if (worker != kNobody) sleepers_.gate(worker).Open();
  }
  // Takes the lock: wakes somebody where items wait beside an idle worker; when to look again.
  double Unstick(double now);
  // When `Unstick` is to be called, if it was not asked for yet; never: it was, or need not be.
  double TakeWatch();

  // Takes the lock: until no query is open and no request executes, of this model or (kNone) of
  // any; false on time-out.
  bool WaitQuiet(double timeout_s, Items model = rules::kNone);
  // Looks again whether what somebody waits for has come.
  void NotifyQuiet();
  // Requests that accelerators execute.
  int flying = 0;
  // No more is taken.
  bool closing = false;

  // A worker's life, from its thread; takes the lock. False: another has its place.
  bool Serve(Seat* seat, Host* host);
  // Takes the lock: workers finish what waits, and go home.
  void End();
  // Takes the lock: it is still at what it began then, so its place is another's, and its queries
  // failed. False: it has finished.
  bool GiveUp(Seat* seat, double began_s);
  // Ends a native query, unless it is over already; false then.
  bool DropNative(QueryId query, Owner* owner, Status status);
  // The same of all of them, or of this model's.
  void DropOwned(Status status, Items model = rules::kNone);
  // Ends what is due; of those that are Python's, appends which. Null: only what is native.
  void Expire(double now, std::vector<QueryId>* expired);

  // A request that the host executed took so long.
  void Count(int worker, double took_s);
  // Since entering, by worker.
  std::vector<std::int64_t> executed;
  std::vector<double> busy_s;
  // The latest native requests, since the last time: forgets them.
  std::vector<Pace> TakePaces();

 private:
  enum class State { kBusy, kHot, kWoken };
  enum class Then { kExecute, kLookAgain, kSleep, kLeave, kLost };
  // What a worker works with, kept from request to request.
  struct Bench;

  Then Next(Seat* seat, State state, Bench* bench, Host* host);
  void LockBeside(Host* host);
  bool IsLost(Seat* seat);
  void ExecuteNative(Seat* seat, Bench* bench);
  bool ExecutePython(Seat* seat, Bench* bench, Host* host);
  void Finish(Seat* seat, Bench* bench, double now);
  void FailNative(const std::vector<Slice>& slices, Status status);
  void Over(std::span<const Slice> slices);
  bool quiet(Items model) { return rules_.OpenOf(model) == 0 && running_[model] == 0; }
  void SpinBriefly();
  bool nothing() const {
    return rules_.size() == 0 && flying == 0 && (closing || sleepers_.everybody());
  }

  Lock lock_;
  rules::Dispatcher rules_;
  Sleepers sleepers_;
  QueryId next_id_ = 0;
  std::atomic<std::uint64_t> arrivals_{0};  // what a hot worker looks at
  bool ending_ = false;
  // See `Unstick`.
  bool doubted_ = false;
  bool asked_ = true;
  double look_s_ = rules::kNever;
  std::condition_variable_any quiet_;
  int waiting_for_quiet_ = 0;
  std::map<Items, int> running_;  // slices that are executed, by model
  std::vector<Pace> paces_;
  std::size_t paces_at_ = 0;
};

}  // namespace deeprecsys::engine
