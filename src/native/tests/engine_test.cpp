// The core under threads: every query of a run is answered once, whatever else happens meanwhile,
// and nothing is read while somebody writes it (ThreadSanitizer).
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "engine/clock.h"
#include "engine/core.h"
#include "engine/run.h"
#include "engine/stubs.h"
#include "tests/check.h"

namespace deeprecsys::engine {
namespace {

// Stands in for Python: executes and finishes what it is given.
class TestHost : public Host {
 public:
  explicit TestHost(Core* core) : core_(core) {}
  bool Execute(const std::vector<Slice>& slices) override {
    const std::lock_guard<Lock> guard(core_->lock());
    for (const Slice& slice : slices) {
      items += slice.hi - slice.lo;
      finished += core_->rules().Finish(slice.query, slice.hi - slice.lo);
    }
    return true;
  }
  void Expired(const std::vector<QueryId>& queries) override {
    expired += static_cast<int>(queries.size());
  }
  void Watch(double) override {}
  std::atomic<Items> items{0};
  std::atomic<int> finished{0}, expired{0};

 private:
  Core* core_;
};

class Threads {
 public:
  Threads(Core* core, Host* host, int workers) : core_(core) {
    for (int number = 0; number < workers; ++number) {
      seats_.push_back(std::make_unique<Seat>(number));
      Seat* seat = seats_.back().get();
      threads_.emplace_back([=] { core->Serve(seat, host); });
    }
  }
  ~Threads() {
    core_->End();
    for (std::thread& thread : threads_) thread.join();
  }
  Seat* seat(int number) { return seats_[number].get(); }

 private:
  Core* core_;
  std::vector<std::unique_ptr<Seat>> seats_;
  std::vector<std::thread> threads_;
};

// A run's columns, and the memory that they point into.
struct Book {
  explicit Book(int queries, double gap_s)
      : arrival_s(queries),
        cost(queries, 0.0),
        times(3 * queries, -1.0),
        size(queries),
        offset(queries, 0),
        worker(queries, -1),
        status(queries, static_cast<std::int8_t>(Status::kPending)) {
    std::mt19937 random(7);
    for (int row = 0; row < queries; ++row) {
      arrival_s[row] = gap_s * row;
      size[row] = random() % 400;
    }
  }
  Columns columns() {
    const auto n = static_cast<std::int64_t>(size.size());
    return {n,
            arrival_s.data(),
            size.data(),
            offset.data(),
            cost.data(),
            times.data(),
            times.data() + n,
            times.data() + 2 * n,
            worker.data(),
            status.data()};
  }
  std::vector<std::int64_t> Counts() const {
    std::vector<std::int64_t> counts(6, 0);
    for (const std::int8_t one : status) ++counts[one];
    return counts;
  }
  std::vector<double> arrival_s, cost, times;
  std::vector<std::int64_t> size, offset;
  std::vector<std::int32_t> worker;
  std::vector<std::int8_t> status;
};

rules::Policy Of(Items batch_size, bool adaptive = false) {
  rules::Policy policy;
  policy.batch_size = batch_size;
  policy.adaptive = adaptive;
  return policy;
}

void EveryQueryIsFinished(bool adaptive) {
  Core core(rules::kNone, {}, 4, 2);
  TestHost host(&core);
  Threads threads(&core, &host, 4);
  NoOp no_op;
  Book book(20'000, 1e-6);
  Run run(&core, no_op.executor(), Pool(), book.columns(), Of(32, adaptive), false, true);
  run.Play(Now());
  CHECK(core.WaitQuiet(60.0));
  CHECK(book.Counts()[static_cast<int>(Status::kOk)] == 20'000);
  Items items = 0, traced = 0;
  for (const std::int64_t size : book.size) items += size;
  for (const Traced& one : run.trace()) traced += one.hi - one.lo;
  CHECK(items == traced);
}

void OthersComeMeanwhile() {
  Core core(50'000, {}, 3, 2);
  TestHost host(&core);
  Threads threads(&core, &host, 3);
  FixedTime fixed({1e-5});
  Book book(5'000, 2e-6);
  Run run(&core, fixed.executor(), Pool(), book.columns(), Of(64, true), false, false);
  std::atomic<Items> asked{0};
  std::thread client([&] {
    for (int i = 0; i < 5'000; ++i) {
      int worker;
      {
        const std::lock_guard<Lock> guard(core.lock());
        rules::Arrival arrival;
        arrival.id = core.next_id();
        arrival.size = 1 + i % 90;
        arrival.policy = Of(64, true);
        if (i % 7 == 0) arrival.deadline_s = Now() + 1e-5;
        try {
          core.Add(arrival);
          asked += 1;
        } catch (const rules::QueueFull&) {
        }
        worker = core.Wake();
      }
      core.Open(worker);
    }
  });
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    run.Stop();
    run.Cancel();
    core.Unstick(Now() + 1.0);
    const std::lock_guard<Lock> guard(core.lock());
    core.TakePaces();
  });
  run.Play(Now());
  client.join();
  stopper.join();
  run.Cancel();
  CHECK(core.WaitQuiet(60.0));
  const auto counts = book.Counts();
  CHECK(counts[static_cast<int>(Status::kPending)] == 5'000 - run.handed());
  CHECK(counts[static_cast<int>(Status::kFailed)] == 0);
  CHECK(host.finished + host.expired == asked);
}

// Every third request fails; its queries do, and no others.
void FailuresAreTheQuerysOwn() {
  Core core(rules::kNone, {}, 2, 2);
  TestHost host(&core);
  Threads threads(&core, &host, 2);
  std::atomic<int> requests{0};
  const Executor fails{&requests, [](void*, const Window*) -> void* { return new int; },
                       [](void* self, const Piece*, std::size_t) {
                         return static_cast<int>(++*static_cast<std::atomic<int>*>(self) % 3 == 0);
                       },
                       [](void*, void* prepared) { delete static_cast<int*>(prepared); },
                       [](void*) { return "out of luck"; }};
  Book book(3'000, 1e-6);
  for (std::int64_t& size : book.size) size = 1;
  Run run(&core, fails, Pool(), book.columns(), Of(8), false, false);
  run.Play(Now());
  CHECK(core.WaitQuiet(60.0));
  CHECK(book.Counts()[static_cast<int>(Status::kFailed)] == 1'000);
  CHECK(book.Counts()[static_cast<int>(Status::kOk)] == 2'000);
  CHECK(run.why() == "out of luck");
}

void AHungWorkerIsReplaced() {
  Core core(rules::kNone, {}, 1, 2);
  TestHost host(&core);
  std::atomic<bool> held{true};
  static int prepared;
  const Executor hangs{&held, [](void*, const Window*) -> void* { return &prepared; },
                       [](void* self, const Piece*, std::size_t) {
                         while (*static_cast<std::atomic<bool>*>(self)) std::this_thread::yield();
                         return 0;
                       },
                       [](void*, void*) {}, nullptr};
  Book book(2, 1e-3);
  book.size = {8, 8};
  Run run(&core, hangs, Pool(), book.columns(), Of(8), false, false);
  {
    Threads threads(&core, &host, 1);
    run.Play(Now());
    Seat other(0);
    double began_s;
    while ((began_s = threads.seat(0)->began_s) == 0.0) std::this_thread::yield();
    CHECK(core.GiveUp(threads.seat(0), began_s));
    CHECK(!core.GiveUp(threads.seat(0), began_s));
    std::thread successor([&] { core.Serve(&other, &host); });
    while (other.began_s == 0.0) std::this_thread::yield();
    CHECK(!run.WaitOver(0.0));  // so it must outlive the one that hangs
    held = false;
    CHECK(core.WaitQuiet(60.0));
    core.End();
    successor.join();
  }
  CHECK(run.WaitOver(60.0));
  CHECK(book.status[0] == static_cast<int>(Status::kFailed));
  CHECK(book.status[1] == static_cast<int>(Status::kOk));
}

}  // namespace
}  // namespace deeprecsys::engine

int main() {
  using namespace deeprecsys::engine;
  EveryQueryIsFinished(false);
  EveryQueryIsFinished(true);
  OthersComeMeanwhile();
  FailuresAreTheQuerysOwn();
  AHungWorkerIsReplaced();
  std::puts("engine: sound");
}
