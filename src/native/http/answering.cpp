// What the door says: by whoever finished a query, or by its own thread where one ended otherwise.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <charconv>
#include <cmath>

#include "http/parts.h"

namespace deeprecsys::http {

namespace {

constexpr std::size_t kSamples = 16;  // that wait to be taken

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

}  // namespace

// By the worker that finished it, which holds no lock.
void Door::Answer(Query* raw) {
  const std::unique_ptr<Query> query(raw);
  const Service& service = *query->service;
  const Items items = query->inputs.candidates;
  const auto count = static_cast<std::size_t>(items * service.columns);
  const std::size_t bytes = query->binary ? count * sizeof(float) : 0;
  std::string json = service.before;
  if (!query->id.empty()) json += "\"id\":\"" + query->id + "\",";
  json += service.opening + std::to_string(items) + service.middle;
  bool sayable = true;
  if (query->binary) {
    json += "\"parameters\":{\"binary_data_size\":" + std::to_string(bytes) + "}}]}";
  } else {
    sayable = Append(query->scores.get(), count, &json);
  }
  const Guard guard(query->connection->mutex);
  if (!sayable) {
    Refuse(query.get(), 500, service.unsayable);
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
  Record(*query, 200, items);
  Say(query->connection, json.data(), json.size(), query->scores.get(), bytes, ends);
  Keep(query.get(), query->finish_s);
}

// Where its turn has come: one of many, evenly spread over time, and no more than are taken.
void Door::Keep(Query* query, double now) {
  if (!query->copies.empty()) return;  // its body is not all of it
  const double every_s = sample_every_s_.load(std::memory_order_relaxed);
  double since_s = sampled_s_.load(std::memory_order_relaxed);
  if (now < since_s + every_s || !sampled_s_.compare_exchange_strong(since_s, now)) return;
  Sample sample{query->service->number, query->arrived_s, query->json, {}};
  sample.body.assign(query->body.data(), query->body.length());
  const Guard guard(mutex_);
  if (samples_.size() < kSamples) samples_.push_back(std::move(sample));
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
  if (status >= 500) {
    const Guard guard(mutex_);
    failed_.push_back({query->service->number, status, query->id, why});
  }
  Say(query->connection, text.data(), text.size(), nullptr, 0, ends);
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
                       status, query.service->number});
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

}  // namespace deeprecsys::http
