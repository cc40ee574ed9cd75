// `deeprecsys._native_torch`: the executor of TorchScript, which links libtorch. The core knows it
// as a capsule, and so imports without torch.
//
// One unit of translation: torch's own headers take twenty seconds to compile.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/csrc/jit/serialization/import.h>

#include "torchscript/plan.h"

namespace py = pybind11;

namespace {

using deeprecsys::engine::Executor;
using deeprecsys::torchscript::Layout;
using deeprecsys::torchscript::Module;
using deeprecsys::torchscript::Plan;

// The plan, what the core calls, and the modules: a method does not keep what it is compiled in.
struct Held {
  Plan plan;
  Executor executor;
  py::tuple modules;
};

// torch's own binding of a script module hands out what it holds.
Module Unwrap(const py::object& module) { return module.attr("_c").cast<Module>(); }

std::optional<Module> UnwrapIfAny(const py::object& module) {
  if (module.is_none()) return std::nullopt;
  return Unwrap(module);
}

at::ScalarType TypeOf(const std::string& datatype) {
  if (datatype == "FP32") return at::kFloat;
  return datatype == "INT64" ? at::kLong : at::kInt;
}

using Input = std::tuple<std::size_t, std::string, std::vector<std::int64_t>>;

py::capsule MakeExecutor(const std::vector<Input>& inputs, std::vector<std::size_t> joined,
                         std::vector<std::size_t> of_query, std::int64_t tasks,
                         const py::object& request, const py::object& one_user,
                         const py::object& apart) {
  Layout layout;
  layout.joined = std::move(joined);
  layout.of_query = std::move(of_query);
  layout.tasks = tasks;
  for (const auto& [column, datatype, row] : inputs) {
    layout.inputs.push_back({column, TypeOf(datatype), row});
  }
  auto held = std::make_unique<Held>(
      Plan(std::move(layout), Unwrap(request), UnwrapIfAny(one_user), UnwrapIfAny(apart)),
      Executor{}, py::make_tuple(request, one_user, apart));
  held->executor = held->plan.executor();
  // The core reads an `Executor` where the capsule points.
  auto* owned = held.release();
  py::capsule capsule(&owned->executor, deeprecsys::engine::kExecutorName);
  PyCapsule_SetContext(capsule.ptr(), owned);
  PyCapsule_SetDestructor(
      capsule.ptr(), [](PyObject* self) { delete static_cast<Held*>(PyCapsule_GetContext(self)); });
  return capsule;
}

// What a method's text may name beside what TorchScript itself knows.
struct Names : torch::jit::Resolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(
      const std::string& name, torch::jit::GraphFunction& method,
      const torch::jit::SourceRange& where) override {
    if (name == "RuntimeError") return std::make_shared<torch::jit::ExceptionValue>(name);
    return torch::jit::nativeResolver()->resolveValue(name, method, where);
  }
};

}  // namespace

PYBIND11_MODULE(_native_torch, module) {
  using namespace py::literals;
  module.doc() = "TorchScript without the GIL, for the native core.";
  module.def("executor", &MakeExecutor, "inputs"_a, "joined"_a, "of_query"_a, "tasks"_a,
             "request"_a, "one_user"_a = py::none(), "apart"_a = py::none());
  module.def(
      "around",
      [](const py::object& held, const std::string& source) {
        Module made("Around", std::make_shared<torch::jit::CompilationUnit>());
        made.register_module("model", Unwrap(held));
        made.define(source, std::make_shared<Names>());
        return made;
      },
      "module"_a, "source"_a);
  module.def(
      "load",
      [](const std::string& path) {
        const py::gil_scoped_release released;
        return torch::jit::load(path, at::Device(at::kCPU));
      },
      "path"_a);
}
