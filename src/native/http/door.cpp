#include "http/door.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "http/parts.h"

namespace deeprecsys::http {

namespace {

constexpr int kEvents = 64, kAccepted = 64;
constexpr double kSweepS = 0.1;
// A client that takes longer to send what it has begun is Python's, which knows how long it may.
constexpr double kHeadS = 0.1, kBodyS = 0.25;
// A look that waits for less has found something that came before it.
constexpr double kAtOnceS = 1e-4;
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

}  // namespace

Door::Door(Core* core, Options options)
    : core_(core),
      options_(std::move(options)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      signal_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      scratch_(kHeadBytes),
      table_(std::make_shared<Table>(Table{{{}, options_.keys}, {}})) {
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

void Door::Serve(const std::string& path, Route route) {
  std::shared_ptr<const Table> before;  // goes when nothing is locked
  const Guard guard(mutex_);
  const auto table = std::make_shared<Table>(*table_);
  auto& paths = table->usual.paths;
  const auto at = std::find(paths.begin(), paths.end(), path) - paths.begin();
  if (at == std::ssize(paths)) {
    paths.push_back(path);
    table->routes.emplace_back();
  }
  table->routes[at] = std::move(route);
  if (table->routes[at].usual == nullptr) {
    paths.erase(paths.begin() + at);
    table->routes.erase(table->routes.begin() + at);
  }
  before = std::exchange(table_, table);
}

void Door::Learn(const Served& service, double pace, int workers, std::vector<double> factors) {
  const Guard guard(mutex_);
  service->pace = pace;
  service->workers = workers;
  service->factors = std::move(factors);
}

std::vector<Sample> Door::TakeSamples() {
  const Guard guard(mutex_);
  return std::exchange(samples_, {});
}

std::vector<Stray> Door::TakeStrays() {
  Lower(signal_);
  const Guard guard(mutex_);
  open_.fetch_sub(std::ssize(strays_));  // so long they are somebody's
  return std::exchange(strays_, {});
}

std::vector<Answered> Door::TakeAnswered() {
  const Guard guard(mutex_);
  return std::exchange(answered_, {});
}

std::vector<Failed> Door::TakeFailed() {
  const Guard guard(mutex_);
  return std::exchange(failed_, {});
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
  const Guard guard(connection->mutex);  // it may be evicted as soon as it is known
  const bool room = open_.load() <= allowed.load() && file <= options_.last_file;
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = file}};
  {
    const Guard known(all_);
    connections_[file] = connection;
  }
  if (!room || epoll_ctl(epoll_, EPOLL_CTL_ADD, file, &event) != 0) Away(connection, "");
}

void Door::Sweep(double now) {
  swept_s_ = now;
  Hear(true);
  for (const Shared& connection : All()) {
    const Guard guard(connection->mutex);
    Tend(connection, now);
  }
}

// Under the connection's mutex, as all that follow.
void Door::Tend(const Shared& connection, double now) {
  const double waits_s = now - connection->began_s;
  switch (connection->state) {
    case Connection::kHead:
      if (connection->head.empty() && !draining_.load()) {
        if (waits_s > options_.idle_s) Close(connection);
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
