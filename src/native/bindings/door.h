// The way of a query over HTTP, for `serving/native.py`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/core.h"
#include "http/door.h"

namespace deeprecsys::bindings {

using InputRow = std::tuple<std::string, std::string, std::vector<std::int64_t>, std::int64_t, bool,
                            bool>;  // as `http::Input`

// A door, and what it points into.
struct PythonDoor {
  PythonDoor(PythonCore& core, http::Options options)
      : kept(py::cast(&core)), keys(options.keys), memory(options.memory),
        door(&core.core, std::move(options)) {}
  py::object kept;
  std::shared_ptr<http::Keys> keys;
  std::shared_ptr<http::Memory> memory;
  http::Door door;
};

// A version of a model, and what it points into: to be kept until nothing uses it.
struct PythonService {
  py::object kept;
  http::Served service;
};

inline std::unique_ptr<PythonService> MakeService(PythonCore& core, PythonExecutor& executor,
                                                  const std::vector<InputRow>& inputs,
                                                  const py::object& policy,
                                                  const py::kwargs& said) {
  auto made = std::make_unique<PythonService>();
  made->service = std::make_shared<http::Service>();
  http::Service& service = *made->service;
  for (const auto& [name, datatype, shape, rows, shared, counted] : inputs) {
    service.inputs.push_back({name, datatype, shape, rows, shared, counted});
  }
  service.executor = executor.executor;
  service.policy = core.rules.policies().Read(policy);
  const auto read = [&](const char* name, auto* into) {
    *into = said[name].template cast<std::decay_t<decltype(*into)>>();
  };
  read("number", &service.number);
  read("model", &service.model);
  read("output", &service.output);
  read("before", &service.before);
  read("opening", &service.opening);
  read("middle", &service.middle);
  read("unsayable", &service.unsayable);
  read("columns", &service.columns);
  read("whole", &service.whole);
  read("admit", &service.admit);
  read("deadline_s", &service.deadline_s);
  read("work_s", &service.work_s);
  read("own_s", &service.own_s);
  read("factors", &service.factors);
  made->kept = py::cast(&executor);
  return made;
}

// Rows of `http::Answered`, as numpy reads them.
inline py::bytes TakeAnswered(PythonDoor& self) {
  static_assert(sizeof(http::Answered) == 11 * 8);
  const std::vector<http::Answered> rows = self.door.TakeAnswered();
  return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(http::Answered)};
}

inline py::list TakeStrays(PythonDoor& self) {
  py::list said;
  for (const http::Stray& stray : self.door.TakeStrays()) {
    said.append(py::make_tuple(stray.file, py::bytes(stray.read), py::bytes(stray.unsent),
                               stray.ends));
  }
  return said;
}

inline void BindDoor(py::module_& module) {
  using namespace py::literals;
  py::class_<PythonService>(module, "Service")
      .def(py::init(&MakeService), "core"_a, "executor"_a, "inputs"_a, "policy"_a)
      // By routes, and by queries that are not answered.
      .def_property_readonly("uses",
                             [](PythonService& self) { return self.service.use_count() - 1; });
  py::class_<PythonDoor>(module, "Door")
      .def(py::init([](PythonCore& core, std::vector<std::string> keys, std::int64_t body_bytes,
                       std::int64_t waiting_bytes, double idle_s, int last_file) {
             http::Options options;
             options.keys->Set(std::move(keys));
             options.body_bytes = body_bytes;
             options.waiting_bytes = waiting_bytes;
             options.idle_s = idle_s;
             options.last_file = last_file;
             return std::make_unique<PythonDoor>(core, std::move(options));
           }),
           "core"_a, "keys"_a, "body_bytes"_a, "waiting_bytes"_a, "idle_s"_a, "last_file"_a)
      .def(
          "serve",
          [](PythonDoor& self, const std::string& path, PythonService* usual, PythonService* other,
             double share) {
            self.door.Serve(path, {usual != nullptr ? usual->service : nullptr,
                                   other != nullptr ? other->service : nullptr, share});
          },
          "path"_a, "usual"_a, "other"_a = nullptr, "share"_a = 0.0)
      .def("sample_every", [](PythonDoor& self, double every_s) { self.door.SampleEvery(every_s); })
      .def("take_samples",
           [](PythonDoor& self) {
             py::list said;
             for (const http::Sample& one : self.door.TakeSamples()) {
               said.append(
                   py::make_tuple(one.service, one.arrived_s, one.json, py::bytes(one.body)));
             }
             return said;
           })
      .def(
          "run", [](PythonDoor& self) { self.door.Run(); }, Released())
      .def("stop", [](PythonDoor& self) { self.door.Stop(); })
      .def("close", [](PythonDoor& self) { self.door.Close(); })
      .def("listen", [](PythonDoor& self, int file) { self.door.Listen(file); })
      .def("adopt", [](PythonDoor& self, int file,
                       std::string client) { self.door.Adopt(file, std::move(client)); })
      .def("drain", [](PythonDoor& self) { self.door.Drain(); })
      .def("stop_listening", [](PythonDoor& self) { self.door.StopListening(); })
      .def(
          "evict", [](PythonDoor& self, double least_s) { return self.door.Evict(least_s); },
          Released())
      .def("admit",
           [](PythonDoor& self, std::vector<std::string> digests) {
             self.keys->Set(std::move(digests));
           })
      .def("share",
           [](PythonDoor& self, const std::string& name, int file, std::int64_t offset,
              std::int64_t size) {
             self.memory->Put(name, std::make_shared<http::Region>(file, offset, size));
           })
      .def("unshare",
           [](PythonDoor& self, const std::string& name) { self.memory->Drop(name); })
      .def("allow",
           [](PythonDoor& self, std::int64_t connections) { self.door.allowed = connections; })
      .def("hold", [](PythonDoor& self, std::int64_t bytes) { self.door.held_elsewhere = bytes; })
      .def("learn",
           [](PythonDoor& self, PythonService& service, double pace, int workers,
              std::vector<double> factors) {
             self.door.Learn(service.service, pace, workers, std::move(factors));
           })
      .def_property_readonly("signal", [](PythonDoor& self) { return self.door.signal(); })
      .def("take_strays", &TakeStrays)
      .def("take_answered", &TakeAnswered)
      .def("take_failed",
           [](PythonDoor& self) {
             py::list said;
             for (const http::Failed& one : self.door.TakeFailed()) {
               said.append(py::make_tuple(one.service, one.status, one.id, one.why));
             }
             return said;
           })
      .def_property_readonly("connections",
                             [](PythonDoor& self) { return self.door.connections(); })
      .def_property_readonly("held", [](PythonDoor& self) { return self.door.held(); })
      .def_property_readonly("pending", [](PythonDoor& self) { return self.door.pending(); });
}

}  // namespace deeprecsys::bindings
