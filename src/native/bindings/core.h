// The core for Python: what `engine/books.py`, `engine/workers.py` and `engine/play.py` are made
// of.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/dispatcher.h"
#include "engine/clock.h"
#include "engine/core.h"
#include "engine/pacer.h"
#include "engine/run.h"
#include "engine/stubs.h"

namespace deeprecsys::bindings {

using engine::Core;
using engine::Executor;
using engine::Run;
using engine::Seat;
using Released = py::call_guard<py::gil_scoped_release>;

// A wait is interrupted so often to see whether somebody pressed Ctrl-C.
inline constexpr double kSignalsS = 0.05;

struct PythonCore {
  PythonCore(Items bound, std::vector<Items> most, int workers, int most_waking)
      : core(bound, std::move(most), workers, most_waking), rules(&core.rules()) {}
  Core core;
  Rules rules;
};

// Who waits for the lock lets the GIL go: a thread that has the one may be waiting for the other.
inline void Acquire(Core& core) {
  if (core.lock().try_lock()) return;
  const py::gil_scoped_release released;
  core.lock().lock();
}

// Calls back, with the GIL, for queries that are Python's. It keeps the GIL from one request to the
// next: given away in between, it would go from worker to worker with each, at two context
// switches.
class PythonHost : public engine::Host {
 public:
  PythonHost(py::function execute, py::function expired, py::function watch)
      : execute_(std::move(execute)), expired_(std::move(expired)), watch_(std::move(watch)) {}

  bool Execute(const std::vector<rules::Slice>& slices) override {
    Hold();
    return execute_(ToPython(slices)).cast<bool>();
  }
  void Expired(const std::vector<QueryId>& queries) override {
    Hold();
    expired_(queries);
  }
  void Watch(double due_s) override {
    Hold();
    watch_(due_s);
  }
  void Rest() override { held_.reset(); }

 private:
  void Hold() {
    if (!held_) held_.emplace();
  }

  py::function execute_, expired_, watch_;
  std::optional<py::gil_scoped_acquire> held_;
};

// A worker's life: begun and ended with the GIL, and lived without it.
inline bool Serve(Core* core, Seat* seat, PythonHost* host) {
  const py::gil_scoped_release released;
  try {
    const bool stayed = core->Serve(seat, host);
    host->Rest();
    return stayed;
  } catch (...) {
    host->Rest();
    throw;
  }
}

// An executor, and what it is of.
struct PythonExecutor {
  Executor executor;
  py::object owner;
  std::unique_ptr<engine::NoOp> no_op;
  std::unique_ptr<engine::FixedTime> fixed_time;
};

inline std::unique_ptr<PythonExecutor> MakeNoOp() {
  auto made = std::make_unique<PythonExecutor>();
  made->no_op = std::make_unique<engine::NoOp>();
  made->executor = made->no_op->executor();
  return made;
}

inline std::unique_ptr<PythonExecutor> MakeFixedTime(std::vector<double> service_s) {
  if (service_s.empty()) throw py::value_error("a fixed-time executor needs a table");
  auto made = std::make_unique<PythonExecutor>();
  made->fixed_time = std::make_unique<engine::FixedTime>(std::move(service_s));
  made->executor = made->fixed_time->executor();
  return made;
}

// Of another extension; the capsule stays alive as long as this does.
inline std::unique_ptr<PythonExecutor> FromCapsule(py::capsule capsule) {
  auto made = std::make_unique<PythonExecutor>();
  auto* found = static_cast<Executor*>(PyCapsule_GetPointer(capsule.ptr(), engine::kExecutorName));
  if (found == nullptr) throw py::error_already_set();
  made->executor = *found;
  made->owner = std::move(capsule);
  return made;
}

// A run, and what it points into.
struct PythonRun {
  std::vector<py::buffer_info> buffers;
  py::tuple kept;
  std::unique_ptr<Run> run;
  ~PythonRun() {
    const py::gil_scoped_release released;
    run.reset();
  }
};

template <typename T>
T* Column(PythonRun* run, const py::dict& columns, const char* name, std::int64_t queries) {
  auto info = columns[name].cast<py::buffer>().request();
  if (info.itemsize != static_cast<py::ssize_t>(sizeof(T)) || info.size < queries) {
    throw py::value_error(std::string("wrong column ") + name);
  }
  run->buffers.push_back(std::move(info));
  return static_cast<T*>(run->buffers.back().ptr);
}

using PoolColumn = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, bool>;

inline engine::Pool PoolOf(const std::vector<PoolColumn>& pool, std::int64_t users) {
  std::vector<engine::Column> columns;
  for (const auto& [rows, row_bytes, period, start, shared] : pool) {
    columns.push_back({reinterpret_cast<const char*>(rows), row_bytes, period, start, shared});
  }
  return engine::Pool(std::move(columns), users);
}

using Window = std::tuple<std::int64_t, std::int64_t, py::buffer>;
using Cut = std::tuple<std::size_t, std::int64_t, std::int64_t>;

// Requests, each of slices (window, lo, hi), as a worker would execute them; scores go where the
// windows say.
inline void ExecuteOnce(PythonExecutor& held, const std::vector<PoolColumn>& columns,
                        std::int64_t users, const std::vector<Window>& windows,
                        const std::vector<std::vector<Cut>>& requests) {
  const Executor& executor = held.executor;
  engine::Pool pool = PoolOf(columns, users);
  std::vector<void*> prepared;
  for (const auto& [offset, size, scores] : windows) {
    const engine::Window window = pool.At(offset, size, scores.request(true).ptr);
    prepared.push_back(executor.prepare(executor.self, &window));
  }
  bool failed = false;
  for (const auto& request : requests) {
    std::vector<engine::Piece> pieces;
    for (const auto& [window, lo, hi] : request) pieces.push_back({prepared.at(window), lo, hi});
    const py::gil_scoped_release released;
    failed |= executor.execute(executor.self, pieces.data(), pieces.size()) != 0;
  }
  for (void* one : prepared) executor.forget(executor.self, one);
  if (failed) throw std::runtime_error("a request failed");
}

inline std::unique_ptr<PythonRun> MakeRun(PythonCore& core, PythonExecutor& executor,
                                          const std::vector<PoolColumn>& pool, std::int64_t users,
                                          const py::dict& columns, const py::object& policy,
                                          bool whole, bool traced, Items model,
                                          py::object kept) {
  auto made = std::make_unique<PythonRun>();
  made->kept = py::make_tuple(py::cast(&core), py::cast(&executor), columns, std::move(kept));
  engine::Pool inputs = PoolOf(pool, users);
  const auto n = static_cast<std::int64_t>(py::len(columns["arrival_s"]));
  engine::Columns told;
  told.queries = n;
  told.arrival_s = Column<double>(made.get(), columns, "arrival_s", n);
  told.size = Column<std::int64_t>(made.get(), columns, "size", n);
  told.offset = Column<std::int64_t>(made.get(), columns, "offset", n);
  told.cost = Column<double>(made.get(), columns, "cost", n);
  told.submit_s = Column<double>(made.get(), columns, "submit_s", n);
  told.start_s = Column<double>(made.get(), columns, "start_s", n);
  told.finish_s = Column<double>(made.get(), columns, "finish_s", n);
  told.worker = Column<std::int32_t>(made.get(), columns, "worker", n);
  told.status = Column<std::int8_t>(made.get(), columns, "status", n);
  const rules::Policy read = core.rules.policies().Read(policy);
  const py::gil_scoped_release released;
  made->run = std::make_unique<Run>(&core.core, executor.executor, std::move(inputs), told, read,
                                    whole, traced, model);
  return made;
}

inline bool WaitQuiet(PythonCore& core, std::optional<double> timeout_s,
                      std::optional<Items> model) {
  const double until_s = timeout_s ? engine::Now() + *timeout_s : rules::kNever;
  for (;;) {
    const double left_s = std::max(0.0, until_s - engine::Now());
    bool quiet;
    {
      const py::gil_scoped_release released;
      quiet = core.core.WaitQuiet(std::min(left_s, kSignalsS), model.value_or(kNone));
    }
    if (quiet) return true;
    if (left_s <= kSignalsS) return false;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

inline py::object IfAnybody(int worker) {
  return worker == engine::kNobody ? py::object(py::none()) : py::object(py::int_(worker));
}

inline void BindCore(py::module_& module) {
  using namespace py::literals;
  py::class_<engine::Sleepers>(module, "Sleepers")
      .def_readwrite("typical_s", &engine::Sleepers::typical_s)
      .def_readonly("wanted", &engine::Sleepers::wanted);
  py::class_<Seat>(module, "Seat")
      .def(py::init<int>())
      .def_property_readonly("began_s", [](const Seat& seat) { return seat.began_s.load(); });
  py::class_<PythonExecutor>(module, "Executor").def(py::init(&FromCapsule), "capsule"_a);
  // Made and ended by the thread that it paces. Whoever holds the GIL goes on.
  py::class_<engine::Pacer>(module, "Pacer")
      .def(py::init([](double share) {
             if (!(share > 0)) throw py::value_error("a share must be positive");
             return std::make_unique<engine::Pacer>(share, +[] { return PyGILState_Check() == 1; });
           }),
           "share"_a)
      .def_property_readonly("paced", &engine::Pacer::paced);
  module.def("no_op", &MakeNoOp);
  module.def("fixed_time", &MakeFixedTime, "service_s"_a);
  module.def("execute", &ExecuteOnce, "executor"_a, "pool"_a, "users"_a, "windows"_a, "requests"_a);
  py::class_<PythonCore>(module, "Core")
      .def(py::init([](std::optional<Items> bound, const std::vector<std::optional<Items>>& most,
                       int workers, int most_waking) {
             return std::make_unique<PythonCore>(
                 bound.value_or(kNone), MostItems(most.size(), most), workers, most_waking);
           }),
           "max_queued_items"_a, "most_items"_a, "workers"_a, "most_waking"_a)
      .def("__enter__", [](PythonCore& self) { Acquire(self.core); })
      .def("__exit__", [](PythonCore& self, const py::args&) { self.core.lock().unlock(); })
      .def_property_readonly(
          "rules", [](PythonCore& self) -> Rules& { return self.rules; },
          py::return_value_policy::reference_internal)
      .def_property_readonly(
          "sleepers", [](PythonCore& self) -> engine::Sleepers& { return self.core.sleepers(); },
          py::return_value_policy::reference_internal)
      .def_property(
          "closing", [](PythonCore& self) { return self.core.closing; },
          [](PythonCore& self, bool closing) { self.core.closing = closing; })
      .def_property(
          "flying", [](PythonCore& self) { return self.core.flying; },
          [](PythonCore& self, int flying) { self.core.flying = flying; })
      .def_property_readonly("executed", [](PythonCore& self) { return self.core.executed; })
      .def_property_readonly("busy_s", [](PythonCore& self) { return self.core.busy_s; })
      .def(
          "add",
          [](PythonCore& self, Items size, const py::object& policy, double deadline_s,
             std::int64_t priority, double cost, const std::string& client, Items model) {
            const QueryId id = self.core.Reserve(0);
            const Items lane = self.core.Add({.id = id,
                                              .size = size,
                                              .policy = self.rules.policies().Read(policy),
                                              .deadline_s = deadline_s,
                                              .priority = priority,
                                              .cost = cost,
                                              .client = client,
                                              .model = model});
            return py::make_tuple(id, OrNone(lane));
          },
          "size"_a, "policy"_a, "deadline_s"_a, "priority"_a, "cost"_a, "client"_a,
          "model"_a = 0)
      .def("wake", [](PythonCore& self) { return IfAnybody(self.core.Wake()); })
      .def("take_watch", [](PythonCore& self) { return self.core.TakeWatch(); })
      .def("open", [](PythonCore& self, int worker) { self.core.Open(worker); })
      .def("use", [](PythonCore& self, int workers) { self.core.sleepers().Use(workers); })
      .def("count",
           [](PythonCore& self, int worker, double took_s) { self.core.Count(worker, took_s); })
      .def("take_paces",
           [](PythonCore& self) {
             py::list said;
             for (const auto& pace : self.core.TakePaces()) {
               said.append(py::make_tuple(pace.model, pace.most, pace.items, pace.took_s));
             }
             return said;
           })
      .def("notify_quiet", [](PythonCore& self) { self.core.NotifyQuiet(); })
      .def("expire",
           [](PythonCore& self, double now) {
             std::vector<QueryId> expired;
             self.core.Expire(now, &expired);
             return expired;
           })
      .def(
          "drop_owned",
          [](PythonCore& self, int status, std::optional<Items> model) {
            self.core.DropOwned(static_cast<engine::Status>(status), model.value_or(kNone));
          },
          "status"_a, "model"_a = py::none())
      .def("wait_quiet", &WaitQuiet, "timeout_s"_a = py::none(), "model"_a = py::none())
      .def(
          "unstick", [](PythonCore& self, double now) { return self.core.Unstick(now); },
          Released())
      .def(
          "end", [](PythonCore& self) { self.core.End(); }, Released())
      .def(
          "give_up",
          [](PythonCore& self, Seat& seat, double began_s) {
            return self.core.GiveUp(&seat, began_s);
          },
          Released())
      .def("serve", [](PythonCore& self, Seat& seat, py::function execute, py::function expired,
                       py::function watch) {
        PythonHost host(std::move(execute), std::move(expired), std::move(watch));
        return Serve(&self.core, &seat, &host);
      });
  py::class_<PythonRun>(module, "Run")
      .def(py::init(&MakeRun), "core"_a, "executor"_a, "pool"_a, "users"_a, "columns"_a, "policy"_a,
           "whole"_a, "traced"_a, "model"_a, "kept"_a)
      .def(
          "play", [](PythonRun& self, double began_s) { self.run->Play(began_s); }, Released())
      .def("stop", [](PythonRun& self) { self.run->Stop(); })
      .def(
          "cancel", [](PythonRun& self) { self.run->Cancel(); }, Released())
      .def_property_readonly("handed", [](PythonRun& self) { return self.run->handed(); })
      .def_property_readonly("closed", [](PythonRun& self) { return self.run->closed(); })
      .def_property_readonly("why", [](PythonRun& self) { return self.run->why(); })
      .def(
          "wait_over",
          [](PythonRun& self, double timeout_s) { return self.run->WaitOver(timeout_s); },
          "timeout_s"_a, Released())
      .def_property_readonly("trace", [](PythonRun& self) {
        py::list said;
        for (const auto& one : self.run->trace()) {
          said.append(
              py::make_tuple(one.row, one.lo, one.hi, one.worker, one.start_s, one.finish_s));
        }
        return said;
      });
}

}  // namespace deeprecsys::bindings
