// What the door is made of: connections, the bodies they receive, and the queries that these are.
#pragma once

#include <stdlib.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/clock.h"
#include "engine/owner.h"
#include "http/door.h"

namespace deeprecsys::http {

using engine::Now;
using engine::Status;
using Guard = std::lock_guard<std::mutex>;
using CoreGuard = std::lock_guard<engine::Lock>;

inline constexpr std::size_t kAlignment = 16;          // of binary tensors
inline constexpr std::int64_t kUsual = 5, kLast = 9;  // priorities

// Memory in which what follows the JSON head lies aligned.
class Body {
 public:
  Body() = default;
  Body(std::int64_t length, std::int64_t json)
      : memory_(static_cast<char*>(malloc(static_cast<std::size_t>(length) + kAlignment)), &free),
        length_(static_cast<std::size_t>(length)) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    skip_ = (kAlignment - (address + static_cast<std::size_t>(json)) % kAlignment) % kAlignment;
  }
  bool good() const { return memory_ != nullptr; }
  char* data() const { return memory_.get() + skip_; }
  std::size_t length() const { return length_; }

 private:
  std::unique_ptr<char, void (*)(void*)> memory_{nullptr, &free};
  std::size_t length_ = 0;
  std::size_t skip_ = 0;
};

// Under its mutex: the door's thread reads, and a worker answers.
struct Door::Connection {
  enum State { kHead, kBody, kBusy, kAway };
  Connection(int file, std::string client) : file(file), client(std::move(client)) {}
  std::mutex mutex;
  const int file;
  const std::string client;
  State state = State::kHead;
  std::string head;  // of a request, as far as it is here; all of it while its body comes
  Head said;
  Route route;
  Body body;
  std::size_t got = 0;
  double began_s = Now();  // when it began to wait
  double arrived_s = 0.0;
  bool paused = false;  // is not listened to: it has sent more than one request
  bool half = false;    // has shut its sending side
  bool told = false;    // that its query is being processed
  Query* query = nullptr;
};

// Of a region to where it is read.
struct Copy {
  std::shared_ptr<const Region> region;
  std::int64_t offset;
  std::int64_t size;
  char* to;
};

// Of the door from beginning to end: made when its body is here, and unmade when it is answered and
// none of it is executed any more.
class Door::Query : public engine::Owner {
 public:
  Query(Door* door, Shared connection, Served service)
      : door(door), connection(std::move(connection)), service(std::move(service)) {}
  ~Query() override {
    if (prepared != nullptr) executor().forget(executor().self, prepared);
    const auto held = static_cast<std::int64_t>(body.length() + shared.length());
    door->held_.fetch_sub(held, std::memory_order_relaxed);
  }

  const Executor& executor() const override { return service->executor; }
  // Copies what lies in shared memory; false: some of it does no longer.
  bool Fetch() {
    for (const Copy& copy : copies) {
      if (!copy.region->Read(copy.offset, copy.size, copy.to)) return false;
    }
    return true;
  }

  const rules::Policy& policy() const override { return policy_; }
  engine::Piece Begin(const engine::Slice& slice, double now) override {
    if (slice.lo == 0) start_s.store(now, std::memory_order_relaxed);
    return {prepared, slice.lo, slice.hi};
  }
  void Finish(QueryId, int, double now) override { finish_s = now; }
  void Forget(QueryId) override { door->Answer(this); }
  void Drop(QueryId, Status status, Items items) override {
    became = status;
    executing = items;
    door->Dropped(this);
  }
  void Late(const engine::Slice& slice) override { executing -= slice.hi - slice.lo; }

  Door* const door;
  const Shared connection;
  const Served service;
  Body body;
  std::int64_t json = 0;  // bytes of it
  Body shared;
  std::vector<Copy> copies;
  std::string head;
  std::string id;
  bool binary = false;
  QueryId number = -1;
  Inputs inputs;
  rules::Policy policy_;
  std::unique_ptr<float[]> scores;
  void* prepared = nullptr;
  double arrived_s = 0.0, parsed_s = 0.0, finish_s = 0.0;
  std::atomic<double> start_s{0.0};  // it may be dropped when it is about to begin
  double until_s = rules::kNever, expected_s = 0.0;
  std::int64_t priority = kUsual;
  // Under the core's lock.
  Status became = Status::kOk;
  Items executing = 0;
};

}  // namespace deeprecsys::http
