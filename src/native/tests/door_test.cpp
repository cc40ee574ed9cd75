// The door under real sockets and threads: every request that is answered is answered once and as
// it was asked, whatever other clients do, and nothing is left behind.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/clock.h"
#include "engine/core.h"
#include "engine/stubs.h"
#include "http/door.h"
#include "tests/check.h"

namespace deeprecsys::http {
namespace {

// All queries are native.
class NoHost : public engine::Host {
 public:
  bool Execute(const std::vector<engine::Slice>&) override { std::abort(); }
  void Expired(const std::vector<QueryId>&) override { std::abort(); }
  void Watch(double) override {}
};

Options Bounds(std::shared_ptr<Memory> memory) {
  Options options;
  options.memory = std::move(memory);
  options.body_bytes = options.waiting_bytes = 1 << 24;
  options.idle_s = 0.3;
  options.last_file = 1 << 20;
  return options;
}

Served Ranker(const Executor& executor, double deadline_s) {
  auto service = std::make_shared<Service>();
  service->executor = executor;
  service->inputs = {{"ids", "INT32", {2}, 100, false, true}};
  service->output = "scores";
  service->before = "{";
  service->opening = "\"outputs\":[{\"shape\":[";
  service->middle = ",1],";
  service->policy.batch_size = 16;
  service->deadline_s = deadline_s;
  service->work_s.assign(1000, 1e-4);
  service->own_s.assign(1000, 1e-4);
  service->factors.assign(10, 1.0);
  return service;
}

std::string Asked(std::int64_t candidates) {
  const auto bytes = std::to_string(8 * candidates);
  const std::string json =
      "{\"inputs\":[{\"name\":\"ids\",\"shape\":[" + std::to_string(candidates) +
      ",2],\"datatype\":\"INT32\",\"parameters\":{\"binary_data_size\":" + bytes +
      "}}],\"parameters\":{\"binary_data_output\":true}}";
  const std::string body = json + std::string(static_cast<std::size_t>(8 * candidates), '\0');
  return "POST /infer HTTP/1.1\r\nInference-Header-Content-Length: " +
         std::to_string(json.size()) + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

class Client {
 public:
  explicit Client(const sockaddr_in& to) : file_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{10, 0};
    setsockopt(file_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    CHECK(connect(file_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
  }
  ~Client() { close(file_); }
  void Send(const std::string& text) { send(file_, text.data(), text.size(), MSG_NOSIGNAL); }
  // The status of one answer, and that nothing but it has come; 0: the connection has ended.
  int Answer() {
    std::string got;
    std::size_t end = std::string::npos, length = 0;
    char piece[4096];
    while (end == std::string::npos || got.size() < end + 4 + length) {
      const ssize_t more = recv(file_, piece, sizeof piece, 0);
      if (more <= 0) return 0;
      got.append(piece, static_cast<std::size_t>(more));
      end = got.find("\r\n\r\n");
      if (end == std::string::npos) continue;
      const std::size_t at = got.find("\r\ncontent-length: ");
      CHECK(at < end);
      length = std::stoul(got.substr(at + 18));
    }
    CHECK(got.size() == end + 4 + length);
    return std::stoi(got.substr(9, 3));
  }

 private:
  int file_;
};

// A door with its threads, and somebody in Python's place, who ends what it hands over.
class House {
 public:
  House(double request_s, double deadline_s,
        std::shared_ptr<Memory> memory = std::make_shared<Memory>())
      : core_(rules::kNone, {}, 2, 2),
        stub_(std::vector<double>(17, request_s)),
        deadline_s_(deadline_s),
        ranker_(Ranker(stub_.executor(), deadline_s)),
        door_(&core_, Bounds(std::move(memory))) {
    door_.Serve("/infer", {ranker_, nullptr, 0.0});
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, reinterpret_cast<sockaddr*>(&address_), sizeof address_) == 0);
    socklen_t size = sizeof address_;
    getsockname(listener, reinterpret_cast<sockaddr*>(&address_), &size);
    CHECK(listen(listener, 64) == 0);
    for (int number = 0; number < 2; ++number) {
      seats_.push_back(std::make_unique<engine::Seat>(number));
      threads_.emplace_back(
          [this, seat = seats_.back().get()] { core_.Serve(seat, &host_); });
    }
    door_.allowed = 32;
    door_.Listen(listener);
    threads_.emplace_back([this] { door_.Run(); });
    threads_.emplace_back([this] {
      while (!over_.load()) {
        door_.Learn(ranker(), 1.0, 2, std::vector<double>(10, 1.0));
        for (const Sample& one : door_.TakeSamples()) {
          CHECK(!one.body.empty());
          ++samples;
        }
        for (const Stray& stray : door_.TakeStrays()) close(stray.file), ++strays;
        for (const Answered& one : door_.TakeAnswered()) ++answered, good += one.status == 200;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  }
  ~House() {
    const double until_s = engine::Now() + 10.0;
    while ((door_.pending() != 0 || door_.held() != 0) && engine::Now() < until_s) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK(door_.pending() == 0 && door_.held() == 0);
    {
      const std::lock_guard<engine::Lock> guard(core_.lock());
      core_.closing = true;
    }
    door_.Stop();
    core_.End();
    over_.store(true);
    for (std::thread& thread : threads_) thread.join();
  }
  const sockaddr_in& address() const { return address_; }
  Door& door() { return door_; }
  Served ranker() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return ranker_;
  }
  // Another version in its place, with a model's number of its own; what was there.
  Served Replace(Items model) {
    const Served next = Ranker(stub_.executor(), deadline_s_);
    next->model = model;
    door_.Serve("/infer", {next, nullptr, 0.0});
    const std::lock_guard<std::mutex> guard(mutex_);
    return std::exchange(ranker_, next);
  }
  Core& core() { return core_; }
  std::atomic<int> strays{0}, answered{0}, good{0}, samples{0};

 private:
  Core core_;
  engine::FixedTime stub_;
  NoHost host_;
  const double deadline_s_;
  std::mutex mutex_;
  Served ranker_;
  Door door_;
  sockaddr_in address_{};
  std::vector<std::unique_ptr<engine::Seat>> seats_;
  std::vector<std::thread> threads_;
  std::atomic<bool> over_{false};
};

void QueriesAreAnsweredOnce() {
  House house(1e-5, rules::kNever);
  std::vector<std::thread> clients;
  for (int number = 0; number < 6; ++number) {
    clients.emplace_back([&, number] {
      Client client(house.address());
      for (int i = 0; i < 150; ++i) {
        client.Send(Asked(1 + (i * 37 + number) % 200));
        CHECK(client.Answer() == 200);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  while (house.good.load() < 900) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  CHECK(house.answered == 900 && house.strays == 0);
}

// A version takes another's place between two queries: none is lost, and what was replaced is not
// used any more once its last query is answered.
void VersionsTakeTurns() {
  House house(1e-4, rules::kNever);
  house.door().SampleEvery(1e-3);
  std::atomic<bool> over{false};
  std::vector<std::thread> clients;
  for (int number = 0; number < 4; ++number) {
    clients.emplace_back([&] {
      Client client(house.address());
      while (!over.load()) {
        client.Send(Asked(60));
        CHECK(client.Answer() == 200);
      }
    });
  }
  for (int turn = 0; turn < 50; ++turn) {
    const int seen = house.good.load();  // each answers some, or nothing was tried
    while (house.good.load() == seen) std::this_thread::sleep_for(std::chrono::microseconds(100));
    Items model;
    {
      const std::lock_guard<engine::Lock> guard(house.core().lock());
      model = house.core().rules().AddModel(1.0);
    }
    CHECK(model <= 1);
    const Items before = 1 - model;
    Served gone = house.Replace(model);
    while (gone.use_count() > 1) std::this_thread::sleep_for(std::chrono::microseconds(100));
    CHECK(house.core().WaitQuiet(10.0, before));
    const std::lock_guard<engine::Lock> guard(house.core().lock());
    house.core().rules().RemoveModel(before);
  }
  over.store(true);
  for (std::thread& client : clients) client.join();
  CHECK(house.samples > 0 && house.strays == 0);
}

// Of clients that go away, that send what is none, that are late, and that are too many.
void WhateverClientsDo() {
  House house(2e-3, 0.02);
  std::vector<std::thread> clients;
  std::atomic<int> good{0}, late{0};
  for (int number = 0; number < 8; ++number) {
    clients.emplace_back([&, number] {
      std::mt19937 random(number);
      for (int i = 0; i < 60; ++i) {
        Client client(house.address());
        const std::string asked = Asked(1 + random() % 160);
        switch (random() % 5) {
          case 0:
            client.Send(asked.substr(0, random() % asked.size()));
            break;
          case 1:
            client.Send(asked);  // and goes
            break;
          case 2:
            client.Send("GET / HTTP/1.1\r\n\r\n");
            CHECK(client.Answer() == 0);
            break;
          default:
            client.Send(asked);
            const int status = client.Answer();
            CHECK(status == 200 || status == 429 || status == 504 || status == 0);
            (status == 200 ? good : late) += 1;
        }
        if (random() % 16 == 0) house.door().Evict(0.0);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(good > 0 && late > 0);
}

std::string AskedBy(const std::string& region, std::int64_t candidates) {
  const std::string json =
      "{\"inputs\":[{\"name\":\"ids\",\"shape\":[" + std::to_string(candidates) +
      ",2],\"datatype\":\"INT32\",\"parameters\":{\"shared_memory_region\":\"" + region +
      "\",\"shared_memory_offset\":8,\"shared_memory_byte_size\":" +
      std::to_string(8 * candidates) + "}}],\"parameters\":{\"binary_data_output\":true}}";
  return "POST /infer HTTP/1.1\r\nContent-Length: " + std::to_string(json.size()) + "\r\n\r\n" +
         json;
}

// Queries in shared memory, whose owner makes it shorter, writes over it, and takes it away.
void WhateverBecomesOfMemory() {
  constexpr std::int64_t kBytes = 8 * 200;
  const int file = memfd_create("in", MFD_CLOEXEC);
  CHECK(ftruncate(file, kBytes) == 0);
  const auto memory = std::make_shared<Memory>();
  const auto put = [&] {
    memory->Put("in", std::make_shared<Region>(dup(file), 0, kBytes));
  };
  put();
  House house(1e-5, rules::kNever, memory);
  Client steady(house.address());
  for (int i = 0; i < 20; ++i) {
    steady.Send(AskedBy("in", 1 + i));
    CHECK(steady.Answer() == 200);
  }
  CHECK(house.strays == 0);
  std::atomic<bool> over{false};
  std::atomic<int> good{0};
  std::thread owner([&] {
    const std::vector<std::int32_t> wrong(2, 100), right(2, 99);
    for (int i = 0; !over.load(); ++i) {
      if (i % 4 == 0) CHECK(ftruncate(file, i % 8 == 0 ? 12 : kBytes) == 0);
      if (i % 4 == 1) CHECK(pwrite(file, (i % 8 == 1 ? wrong : right).data(), 8, 8) == 8);
      if (i % 16 == 2) memory->Drop("in");
      if (i % 16 == 6) put();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  std::vector<std::thread> clients;
  for (int number = 0; number < 4; ++number) {
    clients.emplace_back([&, number] {
      std::mt19937 random(number);
      for (int i = 0; i < 100; ++i) {
        Client client(house.address());
        client.Send(AskedBy(random() % 8 ? "in" : "out", 1 + random() % 198));
        const int status = client.Answer();
        CHECK(status == 200 || status == 0);
        good += status == 200;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  over.store(true);
  owner.join();
  close(file);
  CHECK(good > 0 && good < 400);
}

void IdleOnesEnd() {
  House house(1e-5, rules::kNever);
  Client client(house.address());
  CHECK(client.Answer() == 0);
  CHECK(house.door().connections() == 0);
}

}  // namespace
}  // namespace deeprecsys::http

int main() {
  deeprecsys::http::QueriesAreAnsweredOnce();
  deeprecsys::http::VersionsTakeTurns();
  deeprecsys::http::WhateverClientsDo();
  deeprecsys::http::WhateverBecomesOfMemory();
  deeprecsys::http::IdleOnesEnd();
  std::puts("door: sound");
}
