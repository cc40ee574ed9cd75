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
  py::tuple kept;
  std::shared_ptr<http::Keys> keys;
  std::shared_ptr<http::Memory> memory;
  std::unique_ptr<http::Door> door;
};

inline std::unique_ptr<PythonDoor> MakeDoor(PythonCore& core, PythonExecutor& executor,
                                            const std::vector<InputRow>& inputs,
                                            const py::object& policy, const py::kwargs& said) {
  http::Service service;
  for (const auto& [name, datatype, shape, rows, shared, counted] : inputs) {
    service.inputs.push_back({name, datatype, shape, rows, shared, counted});
  }
  service.policy = core.rules.policies().Read(policy);
  const auto read = [&](const char* name, auto* into) {
    *into = said[name].template cast<std::decay_t<decltype(*into)>>();
  };
  read("paths", &service.usual.paths);
  service.usual.keys->Set(said["keys"].cast<std::vector<std::string>>());
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
  read("body_bytes", &service.body_bytes);
  read("waiting_bytes", &service.waiting_bytes);
  read("idle_s", &service.idle_s);
  read("last_file", &service.last_file);
  auto made = std::make_unique<PythonDoor>();
  made->keys = service.usual.keys;
  made->memory = service.memory;
  made->kept = py::make_tuple(py::cast(&core), py::cast(&executor));
  made->door = std::make_unique<http::Door>(&core.core, executor.executor, std::move(service));
  return made;
}

// Rows of `http::Answered`, as numpy reads them.
inline py::bytes TakeAnswered(PythonDoor& self) {
  static_assert(sizeof(http::Answered) == 10 * 8);
  const std::vector<http::Answered> rows = self.door->TakeAnswered();
  return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(http::Answered)};
}

inline py::list TakeStrays(PythonDoor& self) {
  py::list said;
  for (const http::Stray& stray : self.door->TakeStrays()) {
    said.append(py::make_tuple(stray.file, py::bytes(stray.read), py::bytes(stray.unsent),
                               stray.ends));
  }
  return said;
}

inline void BindDoor(py::module_& module) {
  using namespace py::literals;
  py::class_<PythonDoor>(module, "Door")
      .def(py::init(&MakeDoor), "core"_a, "executor"_a, "inputs"_a, "policy"_a)
      .def(
          "run", [](PythonDoor& self) { self.door->Run(); }, Released())
      .def("stop", [](PythonDoor& self) { self.door->Stop(); })
      .def("close", [](PythonDoor& self) { self.door->Close(); })
      .def("listen", [](PythonDoor& self, int file) { self.door->Listen(file); })
      .def("adopt", [](PythonDoor& self, int file,
                       std::string client) { self.door->Adopt(file, std::move(client)); })
      .def("drain", [](PythonDoor& self) { self.door->Drain(); })
      .def("stop_listening", [](PythonDoor& self) { self.door->StopListening(); })
      .def(
          "evict", [](PythonDoor& self, double least_s) { return self.door->Evict(least_s); },
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
           [](PythonDoor& self, std::int64_t connections) { self.door->allowed = connections; })
      .def("hold", [](PythonDoor& self, std::int64_t bytes) { self.door->held_elsewhere = bytes; })
      .def("learn",
           [](PythonDoor& self, double pace, int workers, std::vector<double> factors) {
             self.door->Learn(pace, workers, std::move(factors));
           })
      .def_property_readonly("signal", [](PythonDoor& self) { return self.door->signal(); })
      .def("take_strays", &TakeStrays)
      .def("take_answered", &TakeAnswered)
      .def("take_failed",
           [](PythonDoor& self) {
             py::list said;
             for (const http::Failed& one : self.door->TakeFailed()) {
               said.append(py::make_tuple(one.status, one.id, one.why));
             }
             return said;
           })
      .def_property_readonly("connections",
                             [](PythonDoor& self) { return self.door->connections(); })
      .def_property_readonly("held", [](PythonDoor& self) { return self.door->held(); })
      .def_property_readonly("pending", [](PythonDoor& self) { return self.door->pending(); });
}

}  // namespace deeprecsys::bindings
