// The way of a query over HTTP, without the GIL: connections that ask what is usual, from `accept`
// to the answer, which whoever finishes a query's last slice writes.
//
// One thread, in `Run`, reads; everything that is not usual it hands to Python with what was read
// of it (`Stray`): other paths and forms, wrong inputs, slow clients, answers that are not read.
// So this knows one form, and Python, which knows all, is the specification: `serving/native.py`.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/core.h"
#include "http/head.h"
#include "http/memory.h"
#include "http/request.h"

namespace deeprecsys::http {

using engine::Core;
using engine::Executor;
using rules::Items;
using rules::QueryId;

// One version of a model, and how it is served.
// number: Python's word for it. model: its number in the dispatcher.
// work_s, own_s [items]: of a query, what it adds to what is ahead of others, and the least that it
// takes itself; larger ones than these are Python's.
// before, opening, middle: an answer's JSON head, but for a query's id after the first, its
// candidates after the second and its scores after the third. unsayable: why an answer is none that
// JSON has no words for.
// deadline_s: of a query that brings none; never: it has none. admit: what would be late is turned
// away.
struct Service {
  std::int64_t number = 0;
  Items model = 0;
  Executor executor{};
  std::vector<Input> inputs;
  std::string output;
  std::string before;
  std::string opening;
  std::string middle;
  std::string unsayable;
  std::int64_t columns = 1;
  rules::Policy policy;
  bool whole = false;
  bool admit = true;
  double deadline_s = rules::kNever;
  std::vector<double> work_s;
  std::vector<double> own_s;
  // Of admission, as Python learned it, under the door's mutex: the pace of requests, and by
  // priority the factors.
  double pace = 1.0;
  int workers = 1;
  std::vector<double> factors;
};
using Served = std::shared_ptr<Service>;

// Who answers at a path. other: of queries, this share, by their ids; null: nobody else.
struct Route {
  Served usual;
  Served other;
  double share = 0.0;
};

// last_file: descriptors beyond it are kept to refuse connections with.
struct Options {
  std::shared_ptr<Keys> keys = std::make_shared<Keys>();
  std::shared_ptr<Memory> memory = std::make_shared<Memory>();
  std::int64_t body_bytes = 0;
  std::int64_t waiting_bytes = 0;
  double idle_s = 75.0;
  int last_file = 0;
};

// A connection that is Python's from here on. read: of its request; unsent: of its answer.
struct Stray {
  int file = -1;
  std::string read;
  std::string unsent;
  bool ends = false;  // with that answer
};

// What became of a query, for Python's books. status: HTTP's. expected_s: as predicted, 0: nothing
// was; left_s: to its deadline then. Times on the engine's clock.
struct Answered {
  double arrived_s, parsed_s, start_s, finish_s, answered_s;
  double expected_s, left_s;
  std::int64_t items, priority, status, service;
};

// One that failed on this side, for the log.
struct Failed {
  std::int64_t service;
  int status;
  std::string id;
  std::string why;
};

// A query that was answered, kept whole: its body, of which `json` bytes are its head.
struct Sample {
  std::int64_t service = 0;
  double arrived_s = 0.0;
  std::int64_t json = 0;
  std::string body;
};

inline constexpr std::size_t kHeadBytes = 16 << 10;  // as Python's

class Door {
 public:
  Door(Core* core, Options options);
  ~Door();
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  // Until `Stop`: the life of its one thread.
  void Run();
  void Stop();
  // After `Run`: ends what is left.
  void Close();
  // From any thread. A socket that listens, and one that is connected; both are the door's then.
  void Listen(int file);
  void Adopt(int file, std::string client);
  // Hands all connections to Python, as soon as they are idle.
  void Drain();
  // Accepts no more.
  void StopListening();
  // Ends the one that has waited longest for its next head, to make room; false: none has waited
  // for so long.
  bool Evict(double least_s);
  // So many connections may be its, and so many bytes of waiting bodies are Python's.
  std::atomic<std::int64_t> allowed{0};
  std::atomic<std::int64_t> held_elsewhere{0};
  // Queries at this path that begin to come from now on; nobody: they are Python's.
  void Serve(const std::string& path, Route route);
  void Learn(const Served& service, double pace, int workers, std::vector<double> factors);
  // Keeps one query whole every so many seconds; never: none.
  void SampleEvery(double seconds) { sample_every_s_.store(seconds); }
  std::vector<Sample> TakeSamples();

  // Readable when there are strays.
  int signal() const { return signal_; }
  std::vector<Stray> TakeStrays();
  std::vector<Answered> TakeAnswered();
  std::vector<Failed> TakeFailed();
  std::int64_t connections() const { return open_.load(std::memory_order_relaxed); }
  std::int64_t held() const { return held_.load(std::memory_order_relaxed); }
  std::int64_t pending() const { return pending_.load(std::memory_order_relaxed); }

 private:
  class Query;
  struct Connection;
  // The paths, and who answers at each.
  struct Table {
    Usual usual;
    std::vector<Route> routes;
  };
  using Shared = std::shared_ptr<Connection>;

  int Timeout(double now);
  void Look(int timeout_ms);
  void TakeIn();
  void Accept();
  void Hear(bool hears);
  void Enter(int file, std::string client);
  void Event(const Shared& connection, std::uint32_t events);
  void Read(const Shared& connection);
  void ReadBody(const Shared& connection);
  bool Receive(const Shared& connection, char* to, std::size_t room, std::size_t* received);
  void Begin(const Shared& connection, std::string_view data);
  void Complete(const Shared& connection);
  bool Find(const Request& request, Query* query);
  bool Admit(Query* query, Items items, double now);
  void Offer(const Shared& connection, std::unique_ptr<Query> query);
  void Refuse(Query* query, int status, const std::string& why);
  void Answer(Query* query);
  void Say(const Shared& connection, const char* head, std::size_t size, const void* data,
           std::size_t bytes, bool ends);
  void Record(const Query& query, int status, Items items);
  void Keep(Query* query, double now);
  void Dropped(Query* query);
  void AnswerDropped();
  void Again(Query* query);
  void Sweep(double now);
  void Tend(const Shared& connection, double now);
  std::vector<Shared> All();
  Shared Of(int file);
  void Forget(const Shared& connection);
  void Away(const Shared& connection, std::string read);
  void Leave(const Shared& connection, Stray stray);
  void Gone(const Shared& connection);
  void Close(const Shared& connection);
  void Wake();

  Core* core_;
  const Options options_;
  int epoll_ = -1;
  int wake_ = -1;    // of the thread
  int signal_ = -1;  // of Python
  int listener_ = -1;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> draining_{false};
  std::atomic<bool> deaf_{false};
  std::atomic<std::int64_t> open_{0};
  std::atomic<std::int64_t> held_{0};
  std::atomic<std::int64_t> pending_{0};
  std::mutex all_;
  std::unordered_map<int, Shared> connections_;  // by file, under `all_`
  // Of the thread.
  std::vector<Query*> lingering_;  // dropped and answered, while slices of them are executed
  std::vector<char> scratch_;
  bool hears_ = true;
  double looked_s_ = 0.0;
  double came_s_ = 0.0;
  double swept_s_ = 0.0;
  // Of whoever holds it.
  std::mutex mutex_;
  std::vector<std::pair<int, std::string>> adopted_;
  std::vector<int> listeners_;
  std::vector<Stray> strays_;
  std::vector<Answered> answered_;
  std::vector<Failed> failed_;
  std::vector<Query*> dropped_;
  std::vector<Sample> samples_;
  std::shared_ptr<const Table> table_;
  std::atomic<double> sample_every_s_{rules::kNever};
  std::atomic<double> sampled_s_{0.0};
};

}  // namespace deeprecsys::http
