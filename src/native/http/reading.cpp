// What the door reads, and what becomes of it: a query that is queued, or another's.
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "http/parts.h"

namespace deeprecsys::http {

namespace {

constexpr std::int64_t kLongestUs = 86'400'000'000;  // as Python's
constexpr std::int64_t kShortAnswer = 2048;          // scores in JSON, as Python's

// By a stable hash of its id (FNV-1a), as `rules/traffic.py`, which is the specification.
const Served& Chosen(const Route& route, std::string_view id, double arrived_s) {
  if (route.other == nullptr) return route.usual;
  if (id.empty()) id = {reinterpret_cast<const char*>(&arrived_s), sizeof arrived_s};
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char byte : id) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
  hash ^= hash >> 32;
  hash = (hash * 0x9E3779B97F4A7C15ULL) >> 11;
  return static_cast<double>(hash) * 0x1p-53 < route.share ? route.other : route.usual;
}

}  // namespace

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

// False: nothing came and nothing will, and that has been seen to.
bool Door::Receive(const Shared& connection, char* to, std::size_t room, std::size_t* received) {
  const ssize_t got = recv(connection->file, to, room, 0);
  *received = got > 0 ? static_cast<std::size_t>(got) : 0;
  if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return true;
  if (got == 0 && (connection->state == Connection::kBody || !connection->head.empty())) {
    // Who shuts its sending side in between is Python's to judge.
    Away(connection, std::exchange(connection->head, {}));
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
  std::shared_ptr<const Table> table;
  {
    const Guard guard(mutex_);
    table = table_;
  }
  const Found found = ReadHead(data, table->usual, &said);
  if (found == Found::kMore && data.size() < kHeadBytes) {
    connection->head = std::string(data);
    return;
  }
  const bool more = found == Found::kUsual &&
                    data.size() - said.bytes > static_cast<std::size_t>(said.length);
  const std::int64_t held = held_.load() + held_elsewhere.load();
  if (found != Found::kUsual || more || draining_.load() || said.length > options_.body_bytes ||
      held + said.length > options_.waiting_bytes) {
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
  connection->route = table->routes[said.path];
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

// Room for what lies in shared memory, which is copied once it is sure to be wanted.
bool Door::Find(const Request& request, Query* query) {
  std::int64_t total = 0;
  for (const Tensor& tensor : request.tensors) {
    if (tensor.region.empty()) continue;
    auto region = options_.memory->Find(tensor.region);
    if (region == nullptr || !region->Has(tensor.offset, tensor.bytes)) return false;
    query->copies.push_back({std::move(region), tensor.offset, tensor.bytes, nullptr});
    total += Padded(tensor.bytes);
    if (total > options_.body_bytes) return false;
  }
  if (query->copies.empty()) return true;
  if (held_.load() + held_elsewhere.load() + total > options_.waiting_bytes) return false;
  Body shared(total, 0);
  if (!shared.good()) return false;
  query->shared = std::move(shared);
  held_.fetch_add(total, std::memory_order_relaxed);
  char* to = query->shared.data();
  for (Copy& copy : query->copies) {
    copy.to = to;
    to += Padded(copy.size);
  }
  return true;
}

void Door::Complete(const Shared& connection) {
  const std::string_view all(connection->body.data(), connection->body.length());
  const auto json = static_cast<std::size_t>(connection->said.json);
  Request request;
  const Route route = std::exchange(connection->route, {});
  const bool read = ReadRequest(all.substr(0, json), &request);
  const Served& chosen = Chosen(route, request.id, connection->arrived_s);
  const Service& service = *chosen;
  auto query = std::make_unique<Query>(this, connection, chosen);
  const bool usual =
      read && Find(request, query.get()) &&
      Bind(request, service.inputs, all.substr(json), &query->inputs,
           query->copies.empty() ? nullptr : query->shared.data()) &&
      (request.output.empty() || request.output == service.output) && request.priority <= kLast &&
      (request.binary || query->inputs.candidates <= kShortAnswer / service.columns) &&
      query->inputs.candidates < static_cast<Items>(service.work_s.size());
  if (!usual) {
    Away(connection, "");
    return;
  }
  query->json = connection->said.json;
  query->arrived_s = connection->arrived_s;
  query->parsed_s = Now();
  query->id = request.id;
  query->binary = request.binary;
  query->priority = request.priority == 0 ? kUsual : request.priority;
  const auto timeout_us = static_cast<double>(std::min(request.timeout_us, kLongestUs));
  const double deadline_s = timeout_us == 0 ? service.deadline_s : 1e-6 * timeout_us;
  query->until_s = query->arrived_s + deadline_s;
  Offer(connection, std::move(query));
}

// The rules of `dataplane.infer` and `books.promise`, in their order.
void Door::Offer(const Shared& connection, std::unique_ptr<Query> query) {
  const Items items = query->inputs.candidates;
  const Service& service = *query->service;
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
  if (service.admit && !Admit(query.get(), items, query->parsed_s)) {
    take();
    char why[128];
    std::snprintf(why, sizeof why,
                  "overloaded: it would finish in about %.0f ms, its deadline is in %.0f ms",
                  query->expected_s * 1e3, (query->until_s - query->parsed_s) * 1e3);
    Refuse(query.get(), 429, why);
    return;
  }
  if (!query->Fetch() || !AreValid(service.inputs, query->inputs)) {
    Away(connection, "");
    return;
  }
  query->scores = std::make_unique<float[]>(static_cast<std::size_t>(items * service.columns));
  const engine::Window window{items, query->inputs.data.size(), query->inputs.data.data(),
                              query->inputs.rows.data(), query->scores.get()};
  query->prepared = service.executor.prepare(service.executor.self, &window);
  query->policy_ = service.whole ? rules::Uncut(service.policy, items) : service.policy;
  take();
  if (query->prepared == nullptr) {
    Again(query.get());
    return;
  }
  rules::Arrival arrival;
  arrival.size = items;
  arrival.policy = query->policy_;
  arrival.deadline_s = query->until_s;
  arrival.priority = query->priority;
  arrival.cost = service.work_s[static_cast<std::size_t>(items)];
  arrival.model = service.model;
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
  const Service& service = *query->service;
  const auto row = static_cast<std::size_t>(items);
  double ahead_s;
  {
    const CoreGuard guard(core_->lock());
    ahead_s = core_->rules().Ahead(query->priority, query->connection->client, items,
                                   service.model, service.work_s[row]);
  }
  const Guard guard(mutex_);
  const double factor = service.factors[static_cast<std::size_t>(query->priority)];
  query->expected_s = factor * service.pace * (ahead_s / service.workers + service.own_s[row]);
  return ahead_s <= 0 || query->expected_s <= query->until_s - now;
}

}  // namespace deeprecsys::http
