#include "http/door.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "engine/clock.h"

namespace deeprecsys::http {

namespace {

using engine::Now;
using engine::Status;
using Guard = std::lock_guard<std::mutex>;
using CoreGuard = std::lock_guard<engine::Lock>;

constexpr std::size_t kHeadBytes = 16 << 10;  // as Python's
constexpr std::size_t kAlignment = 16;        // of binary tensors
constexpr int kEvents = 64, kAccepted = 64;
constexpr double kSweepS = 0.1;
// A client that takes longer to send what it has begun is Python's, which knows how long it may.
constexpr double kHeadS = 0.1, kBodyS = 0.25;
// A look that waits for less has found something that came before it.
constexpr double kAtOnceS = 1e-4;
constexpr std::int64_t kLongestUs = 86'400'000'000;  // as Python's
constexpr std::int64_t kUsual = 5, kLast = 9;        // priorities
constexpr std::int64_t kShortAnswer = 2048;          // scores in JSON, as Python's
constexpr std::string_view kProcessing = "HTTP/1.1 102 Processing\r\n\r\n";

void Raise(int file) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = write(file, &one, sizeof one);
}

void Lower(int file) {
  std::uint64_t count;
  [[maybe_unused]] const auto got = read(file, &count, sizeof count);
}

std::string NameOf(const sockaddr_storage& peer) {
  char text[INET6_ADDRSTRLEN] = "";
  if (peer.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(peer).sin_addr, text, sizeof text);
  } else if (peer.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr, text, sizeof text);
  }
  return *text != '\0' ? text : "local";
}

std::string_view PhraseOf(int status) {
  switch (status) {
    case 429:
      return "429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1";
    case 503:
      return "503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1";
    case 504:
      return "504 Gateway Timeout\r\ncontent-type: application/json";
    default:
      return "500 Internal Server Error\r\ncontent-type: application/json";
  }
}

// As JSON; false: it has no word for one of them.
bool Append(const float* scores, std::size_t count, std::string* json) {
  *json += "\"data\":[";
  char text[32];
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(scores[i])) return false;
    const auto end = std::to_chars(text, text + sizeof text, static_cast<double>(scores[i])).ptr;
    if (i != 0) *json += ',';
    json->append(text, end);
  }
  *json += "]}]}";
  return true;
}

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

}  // namespace

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
  Body body;
  std::size_t got = 0;
  double began_s = Now();  // when it began to wait
  double arrived_s = 0.0;
  bool paused = false;  // is not listened to: it has sent more than one request
  bool half = false;    // has shut its sending side
  bool told = false;    // that its query is being processed
  Query* query = nullptr;
};

// Of the door from beginning to end: made when its body is here, and unmade when it is answered and
// none of it is executed any more.
class Door::Query : public engine::Owner {
 public:
  Query(Door* door, Shared connection) : door(door), connection(std::move(connection)) {}
  ~Query() override {
    if (prepared != nullptr) door->executor_.forget(door->executor_.self, prepared);
    door->held_.fetch_sub(static_cast<std::int64_t>(body.length()), std::memory_order_relaxed);
  }

  const Executor& executor() const override { return door->executor_; }
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
  Body body;
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

Door::Door(Core* core, Executor executor, Service service)
    : core_(core),
      executor_(executor),
      service_(std::move(service)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      signal_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      scratch_(kHeadBytes),
      factors_(kLast + 1, 1.0) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = wake_}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event);
}

Door::~Door() { Close(); }

void Door::Close() {
  if (epoll_ < 0) return;
  for (const auto& [file, connection] : connections_) {
    if (connection->state != Connection::kAway) close(file);
  }
  for (const Stray& stray : strays_) close(stray.file);
  for (Query* query : lingering_) {
    if (query->executing == 0) delete query;
  }
  connections_.clear();
  strays_.clear();
  lingering_.clear();
  for (const auto& [file, client] : adopted_) close(file);
  for (const int file : listeners_) close(file);
  for (const int file : {std::exchange(listener_, -1), std::exchange(epoll_, -1), wake_, signal_}) {
    if (file >= 0) close(file);
  }
}

void Door::Wake() { Raise(wake_); }

void Door::Stop() {
  stopping_.store(true);
  Wake();
}

void Door::Listen(int file) {
  const Guard guard(mutex_);
  listeners_.push_back(file);
  Wake();
}

void Door::Adopt(int file, std::string client) {
  const Guard guard(mutex_);
  adopted_.emplace_back(file, std::move(client));
  open_.fetch_add(1);
  Wake();
}

void Door::Drain() {
  draining_.store(true);
  Wake();
}

void Door::StopListening() {
  deaf_.store(true);
  Wake();
}

bool Door::Evict(double least_s) {
  Shared oldest;
  double since_s = Now() - least_s;
  for (const Shared& connection : All()) {
    const Guard guard(connection->mutex);
    if (connection->state != Connection::kHead || connection->began_s > since_s) continue;
    since_s = connection->began_s;
    oldest = connection;
  }
  if (oldest == nullptr) return false;
  const Guard guard(oldest->mutex);
  if (oldest->state == Connection::kHead) Close(oldest);
  return true;
}

std::vector<Door::Shared> Door::All() {
  const Guard guard(all_);
  std::vector<Shared> all;
  for (const auto& [file, connection] : connections_) all.push_back(connection);
  return all;
}

void Door::Learn(double pace, int workers, std::vector<double> factors) {
  const Guard guard(mutex_);
  pace_ = pace;
  workers_ = workers;
  factors_ = std::move(factors);
}

std::vector<Stray> Door::TakeStrays() {
  Lower(signal_);
  const Guard guard(mutex_);
  return std::exchange(strays_, {});
}

std::vector<Answered> Door::TakeAnswered() {
  const Guard guard(mutex_);
  return std::exchange(answered_, {});
}

void Door::Run() {
  while (!stopping_.load()) {
    Look(Timeout(Now()));
    const double now = Now();
    if (pending_.load() != 0) {
      const CoreGuard guard(core_->lock());
      if (core_->rules().DueS() <= now) core_->Expire(now, nullptr);
    }
    AnswerDropped();
    if (now - swept_s_ >= kSweepS) Sweep(now);
  }
  AnswerDropped();
}

// Until the next sweep, or an open query's deadline.
int Door::Timeout(double now) {
  double due_s = swept_s_ + kSweepS;
  if (pending_.load() != 0) {
    const CoreGuard guard(core_->lock());
    // What is due and not ended is Python's, which will be at it.
    if (core_->rules().has_deadlines()) due_s = std::min(due_s, core_->rules().NextDeadlineS());
  }
  return std::clamp(static_cast<int>(std::ceil((due_s - now) * 1e3)), 1, 100);
}

void Door::Look(int timeout_ms) {
  std::array<epoll_event, kEvents> events;
  const double asked_s = Now();
  const int found = epoll_wait(epoll_, events.data(), kEvents, timeout_ms);
  const double now = Now();
  came_s_ = now - asked_s < kAtOnceS ? looked_s_ : now;
  looked_s_ = now;
  for (int i = 0; i < found; ++i) {
    const int file = events[i].data.fd;
    if (file == wake_) {
      TakeIn();
    } else if (file == listener_) {
      Accept();
    } else if (const Shared connection = Of(file)) {
      Event(connection, events[i].events);
    }
  }
}

Door::Shared Door::Of(int file) {
  const Guard guard(all_);
  const auto at = connections_.find(file);
  return at != connections_.end() ? at->second : nullptr;
}

// What other threads have left for this one.
void Door::TakeIn() {
  Lower(wake_);
  std::vector<std::pair<int, std::string>> adopted;
  std::vector<int> listeners;
  {
    const Guard guard(mutex_);
    adopted.swap(adopted_);
    listeners.swap(listeners_);
  }
  for (const int listener : listeners) {
    listener_ = listener;
    epoll_event event{.events = EPOLLIN, .data = {.fd = listener}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, listener, &event);
  }
  for (auto& [file, client] : adopted) Enter(file, std::move(client));
  if (deaf_.load() && listener_ >= 0) close(std::exchange(listener_, -1));
}

void Door::Accept() {
  for (int i = 0; i < kAccepted; ++i) {
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    const int file = accept4(listener_, reinterpret_cast<sockaddr*>(&peer), &size,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (file < 0) {
      // Without a descriptor to be had it would be told again at once.
      if (errno == EMFILE || errno == ENFILE) Hear(false);
      return;
    }
    const int one = 1;
    setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    open_.fetch_add(1);
    Enter(file, NameOf(peer));
  }
}

// Is told of those that want to connect, from now on or not until the next sweep.
void Door::Hear(bool hears) {
  if (listener_ < 0 || hears == hears_) return;
  hears_ = hears;
  epoll_event event{.events = hears ? EPOLLIN : 0U, .data = {.fd = listener_}};
  epoll_ctl(epoll_, EPOLL_CTL_MOD, listener_, &event);
}

void Door::Enter(int file, std::string client) {
  const auto connection = std::make_shared<Connection>(file, std::move(client));
  const bool room = open_.load() <= allowed.load() && file <= service_.last_file;
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = file}};
  {
    const Guard guard(all_);
    connections_[file] = connection;
  }
  if (!room || epoll_ctl(epoll_, EPOLL_CTL_ADD, file, &event) != 0) {
    const Guard guard(connection->mutex);
    Away(connection, "");
  }
}

void Door::Event(const Shared& connection, std::uint32_t events) {
  const Guard guard(connection->mutex);
  if (connection->state == Connection::kAway) return;
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
    Gone(connection);
    return;
  }
  if (connection->state == Connection::kBusy) {  // it sends more, or nothing any more
    if ((events & EPOLLRDHUP) != 0 && !connection->half) {
      connection->half = true;
      connection->began_s = Now();
    }
    connection->paused = true;
    epoll_event event{.events = 0, .data = {.fd = connection->file}};
    epoll_ctl(epoll_, EPOLL_CTL_MOD, connection->file, &event);
    return;
  }
  if ((events & EPOLLRDHUP) != 0) connection->half = true;
  if (connection->state == Connection::kHead) {
    Read(connection);
  } else {
    ReadBody(connection);
  }
}

// Under the connection's mutex, as all that follow. False: nothing came and nothing will, and that
// has been seen to.
bool Door::Receive(const Shared& connection, char* to, std::size_t room, std::size_t* received) {
  const ssize_t got = recv(connection->file, to, room, 0);
  *received = got > 0 ? static_cast<std::size_t>(got) : 0;
  if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return true;
  if (got == 0 && (connection->state == Connection::kBody || !connection->head.empty())) {
    Away(connection, "");  // who shuts its sending side in between is Python's to judge
  } else {
    Gone(connection);
  }
  return false;
}

void Door::Read(const Shared& connection) {
  std::string& head = connection->head;
  std::size_t received;
  if (!Receive(connection, scratch_.data(), kHeadBytes - head.size(), &received)) return;
  if (received == 0) return;
  if (head.empty()) {
    connection->arrived_s = came_s_;
    connection->began_s = looked_s_;
    Begin(connection, {scratch_.data(), received});
  } else {
    head.append(scratch_.data(), received);
    Begin(connection, std::string_view(std::exchange(head, {})));
  }
}

// data: from a request's beginning.
void Door::Begin(const Shared& connection, std::string_view data) {
  Head said;
  const Found found = ReadHead(data, service_.usual, &said);
  if (found == Found::kMore && data.size() < kHeadBytes) {
    connection->head = std::string(data);
    return;
  }
  const bool more = found == Found::kUsual &&
                    data.size() - said.bytes > static_cast<std::size_t>(said.length);
  const std::int64_t held = held_.load() + held_elsewhere.load();
  if (found != Found::kUsual || more || draining_.load() || said.length > service_.body_bytes ||
      held + said.length > service_.waiting_bytes) {
    Away(connection, std::string(data));
    return;
  }
  connection->body = Body(said.length, said.json);
  if (!connection->body.good()) {
    Away(connection, std::string(data));
    return;
  }
  held_.fetch_add(said.length, std::memory_order_relaxed);
  connection->state = Connection::kBody;
  connection->said = said;
  connection->head = std::string(data.substr(0, said.bytes));
  connection->got = data.size() - said.bytes;
  std::memcpy(connection->body.data(), data.data() + said.bytes, connection->got);
  if (connection->got == connection->body.length()) {
    Complete(connection);
  } else {
    ReadBody(connection);
  }
}

void Door::ReadBody(const Shared& connection) {
  const Body& body = connection->body;
  while (connection->got < body.length()) {
    std::size_t received;
    char* to = body.data() + connection->got;
    if (!Receive(connection, to, body.length() - connection->got, &received)) return;
    if (received == 0) return;
    connection->got += received;
  }
  Complete(connection);
}

void Door::Complete(const Shared& connection) {
  const std::string_view all(connection->body.data(), connection->body.length());
  const auto json = static_cast<std::size_t>(connection->said.json);
  Request request;
  auto query = std::make_unique<Query>(this, connection);
  const bool usual = ReadRequest(all.substr(0, json), &request) &&
                     Bind(request, service_.inputs, all.substr(json), &query->inputs) &&
                     (request.output.empty() || request.output == service_.output) &&
                     request.priority <= kLast &&
                     (request.binary || query->inputs.candidates * service_.columns <= kShortAnswer) &&
                     query->inputs.candidates < static_cast<Items>(service_.work_s.size());
  if (!usual) {
    Away(connection, "");
    return;
  }
  query->arrived_s = connection->arrived_s;
  query->parsed_s = Now();
  query->id = request.id;
  query->binary = request.binary;
  query->priority = request.priority == 0 ? kUsual : request.priority;
  const double deadline_s = request.timeout_us == 0
                                ? service_.deadline_s
                                : 1e-6 * static_cast<double>(std::min(request.timeout_us, kLongestUs));
  query->until_s = query->arrived_s + deadline_s;
  Offer(connection, std::move(query));
}

// The rules of `dataplane.infer` and `books.promise`, in their order.
void Door::Offer(const Shared& connection, std::unique_ptr<Query> query) {
  const Items items = query->inputs.candidates;
  const auto take = [&] {  // the body is the query's from here on, which gives it back
    query->body = std::move(connection->body);
    connection->body = Body();
    query->head = std::exchange(connection->head, {});
    connection->state = Connection::kBusy;
    connection->query = query.get();
    connection->told = false;
    connection->began_s = query->parsed_s;
    pending_.fetch_add(1);
  };
  if (query->until_s <= query->parsed_s) {
    take();
    Refuse(query.get(), 504, "the deadline passed before the query was read");
    return;
  }
  if (service_.admit && !Admit(query.get(), items, query->parsed_s)) {
    take();
    char why[128];
    std::snprintf(why, sizeof why,
                  "overloaded: it would finish in about %.0f ms, its deadline is in %.0f ms",
                  query->expected_s * 1e3, (query->until_s - query->parsed_s) * 1e3);
    Refuse(query.get(), 429, why);
    return;
  }
  if (!AreValid(service_.inputs, query->inputs)) {
    Away(connection, "");
    return;
  }
  query->scores = std::make_unique<float[]>(static_cast<std::size_t>(items * service_.columns));
  const engine::Window window{items, query->inputs.data.size(), query->inputs.data.data(),
                              query->inputs.rows.data(), query->scores.get()};
  query->prepared = executor_.prepare(executor_.self, &window);
  query->policy_ = service_.whole ? rules::Uncut(service_.policy, items) : service_.policy;
  take();
  if (query->prepared == nullptr) {
    Refuse(query.get(), 500, "the model failed");
    return;
  }
  rules::Arrival arrival;
  arrival.size = items;
  arrival.policy = query->policy_;
  arrival.deadline_s = query->until_s;
  arrival.priority = query->priority;
  arrival.cost = service_.work_s[static_cast<std::size_t>(items)];
  arrival.client = connection->client;
  arrival.owner = query.get();
  int worker = engine::kNobody;
  std::string full;
  bool closing = false;
  {
    const CoreGuard guard(core_->lock());
    closing = core_->closing;
    if (!closing) {
      arrival.id = query->number = core_->Reserve(1);
      try {
        core_->Add(arrival);
        worker = core_->Wake();
      } catch (const rules::QueueFull& error) {
        full = error.what();
      }
    }
  }
  if (closing) {
    Refuse(query.get(), 503, "the server is shutting down");
  } else if (!full.empty()) {
    Refuse(query.get(), 429, "overloaded: " + full);
  } else {
    query.release();  // NOLINT: its own, until it is answered
    core_->Open(worker);
  }
}

// `Admission.predict_s`; with nothing before it, a query is taken whatever is predicted.
bool Door::Admit(Query* query, Items items, double now) {
  if (query->until_s == rules::kNever) return true;
  double ahead_s;
  {
    const CoreGuard guard(core_->lock());
    ahead_s = core_->rules().Ahead(query->priority, query->connection->client, items);
  }
  const Guard guard(mutex_);
  const double own_s = service_.own_s[static_cast<std::size_t>(items)];
  const double factor = factors_[static_cast<std::size_t>(query->priority)];
  query->expected_s = factor * pace_ * (ahead_s / workers_ + own_s);
  return ahead_s <= 0 || query->expected_s <= query->until_s - now;
}

// By whoever ended it, and unmakes it not. Under the connection's mutex.
void Door::Refuse(Query* query, int status, const std::string& why) {
  std::string body = "{\"error\":\"" + why + '"';
  if (!query->id.empty()) body += ",\"id\":\"" + query->id + '"';
  body += '}';
  std::string text = "HTTP/1.1 ";
  text += PhraseOf(status);
  text += "\r\ncontent-length: " + std::to_string(body.size()) + "\r\n";
  const bool ends = query->connection->half || draining_.load();
  if (ends) text += "connection: close\r\n";
  text += "\r\n" + body;
  Record(*query, status, 0);
  Say(query->connection, text.data(), text.size(), nullptr, 0, ends);
}

// By the worker that finished it, which holds no lock.
void Door::Answer(Query* raw) {
  const std::unique_ptr<Query> query(raw);
  const Items items = query->inputs.candidates;
  const auto count = static_cast<std::size_t>(items * service_.columns);
  const std::size_t bytes = query->binary ? count * sizeof(float) : 0;
  std::string json = service_.before;
  if (!query->id.empty()) json += "\"id\":\"" + query->id + "\",";
  json += service_.opening + std::to_string(items) + service_.middle;
  bool sayable = true;
  if (query->binary) {
    json += "\"parameters\":{\"binary_data_size\":" + std::to_string(bytes) + "}}]}";
  } else {
    sayable = Append(query->scores.get(), count, &json);
  }
  const Guard guard(query->connection->mutex);
  if (!sayable) {
    Refuse(query.get(), 500, service_.unsayable);
    return;
  }
  const bool ends = query->connection->half || draining_.load();
  std::string head = "HTTP/1.1 200 OK\r\ncontent-type: application/";
  if (query->binary) {
    head += "octet-stream\r\ninference-header-content-length: " + std::to_string(json.size());
  } else {
    head += "json";
  }
  head += "\r\ncontent-length: " + std::to_string(json.size() + bytes) + "\r\n";
  head += ends ? "connection: close\r\n\r\n" : "\r\n";
  json.insert(0, head);
  Record(*query, query->connection->state == Connection::kAway ? 499 : 200, items);
  Say(query->connection, json.data(), json.size(), query->scores.get(), bytes, ends);
}

// Sends, and lets the connection go on: it is idle, or Python's where something is left to do.
void Door::Say(const Shared& connection, const char* head, std::size_t size, const void* data,
               std::size_t bytes, bool ends) {
  pending_.fetch_sub(1);
  if (connection->state == Connection::kAway) return;
  connection->query = nullptr;
  std::array<iovec, 2> parts{{{const_cast<char*>(head), size}, {const_cast<void*>(data), bytes}}};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = bytes != 0 ? 2 : 1;
  const ssize_t sent = sendmsg(connection->file, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  connection->state = Connection::kHead;
  connection->began_s = Now();
  const std::size_t done = sent > 0 ? static_cast<std::size_t>(sent) : 0;
  if (ends || done < size + bytes) {  // a reset is found out by who goes on
    Stray stray;
    stray.ends = ends;
    if (done < size) stray.unsent.append(head + done, size - done);
    const std::size_t from = done > size ? done - size : 0;
    if (bytes != 0) stray.unsent.append(static_cast<const char*>(data) + from, bytes - from);
    Leave(connection, std::move(stray));
  } else if (connection->paused) {
    connection->paused = false;
    epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = connection->file}};
    epoll_ctl(epoll_, EPOLL_CTL_MOD, connection->file, &event);
  }
}

void Door::Record(const Query& query, int status, Items items) {
  const Guard guard(mutex_);
  answered_.push_back({query.arrived_s, query.parsed_s, query.start_s, query.finish_s, Now(),
                       query.expected_s, query.until_s - query.parsed_s, items, query.priority,
                       status});
}

// With the core's lock held, so that it is answered elsewhere.
void Door::Dropped(Query* query) {
  const Guard guard(mutex_);
  dropped_.push_back(query);
  if (dropped_.size() == 1) Wake();
}

void Door::AnswerDropped() {
  std::vector<Query*> dropped;
  {
    const Guard guard(mutex_);
    dropped.swap(dropped_);
  }
  for (Query* query : dropped) {
    const Guard guard(query->connection->mutex);
    if (query->connection->state == Connection::kAway) {
      Record(*query, 499, 0);
      pending_.fetch_sub(1);
    } else if (query->became == Status::kExpired) {
      Refuse(query, 504, "the deadline passed before the query was finished");
    } else if (query->became == Status::kCancelled) {
      Refuse(query, 503, "the server is shutting down");
    } else if (query->became == Status::kLost) {
      Refuse(query, 503, "a worker hung; it has been replaced: ask again");
    } else {
      Again(query);
    }
    lingering_.push_back(query);
  }
  if (lingering_.empty()) return;
  std::vector<Query*> over;
  {
    const CoreGuard guard(core_->lock());
    std::erase_if(lingering_, [&](Query* query) {
      if (query->executing == 0) over.push_back(query);
      return query->executing == 0;
    });
  }
  for (Query* query : over) delete query;
}

// The model failed. Python tries it once more, and says why if it does again.
void Door::Again(Query* query) {
  pending_.fetch_sub(1);
  query->connection->query = nullptr;
  Stray stray;
  stray.read = query->head;
  stray.read.append(query->body.data(), query->body.length());
  Leave(query->connection, std::move(stray));
}

void Door::Sweep(double now) {
  swept_s_ = now;
  Hear(true);
  for (const Shared& connection : All()) {
    const Guard guard(connection->mutex);
    Tend(connection, now);
  }
}

void Door::Tend(const Shared& connection, double now) {
  const double waits_s = now - connection->began_s;
  switch (connection->state) {
    case Connection::kHead:
      if (connection->head.empty() && !draining_.load()) {
        if (waits_s > service_.idle_s) Close(connection);
      } else if (connection->head.empty() || waits_s > kHeadS) {
        Away(connection, std::exchange(connection->head, {}));
      }
      break;
    case Connection::kBody:
      if (waits_s > kBodyS) Away(connection, "");
      break;
    case Connection::kBusy:
      // Has the client only shut its sending side? Its kernel answers this with a reset if not.
      if (connection->half && !connection->told && waits_s > kSweepS) {
        connection->told = true;
        send(connection->file, kProcessing.data(), kProcessing.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      break;
    case Connection::kAway:
      Forget(connection);
      break;
  }
}

void Door::Forget(const Shared& connection) {
  const Guard guard(all_);
  const auto at = connections_.find(connection->file);
  if (at != connections_.end() && at->second == connection) connections_.erase(at);
}

// read: of its request, where its body has not begun.
void Door::Away(const Shared& connection, std::string read) {
  Stray stray;
  stray.read = std::move(read);
  if (connection->state == Connection::kBody) {
    stray.read = std::move(connection->head);
    stray.read.append(connection->body.data(), connection->got);
    held_.fetch_sub(static_cast<std::int64_t>(connection->body.length()));
    connection->body = Body();
  }
  Leave(connection, std::move(stray));
}

// By any thread.
void Door::Leave(const Shared& connection, Stray stray) {
  connection->state = Connection::kAway;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, connection->file, nullptr);
  open_.fetch_sub(1);
  stray.file = connection->file;
  const Guard guard(mutex_);
  strays_.push_back(std::move(stray));
  Raise(signal_);
}

// The client has: what it asked is not answered.
void Door::Gone(const Shared& connection) {
  if (Query* query = connection->query) {
    const CoreGuard guard(core_->lock());
    if (core_->DropNative(query->number, query, Status::kCancelled)) core_->NotifyQuiet();
  }
  Close(connection);
}

void Door::Close(const Shared& connection) {
  if (connection->body.length() != 0) {
    held_.fetch_sub(static_cast<std::int64_t>(connection->body.length()));
    connection->body = Body();
  }
  connection->query = nullptr;
  connection->state = Connection::kAway;
  open_.fetch_sub(1);
  Forget(connection);  // first, for then its number may be another's
  close(connection->file);
}

}  // namespace deeprecsys::http
