// The dispatcher for Python, with the methods of `rules.dispatch.Dispatcher`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/policies.h"
#include "rules/dispatch.h"

namespace deeprecsys::bindings {

namespace py = pybind11;

using rules::Dispatcher;
using rules::Items;
using rules::kNone;
using rules::QueryId;

// None for kNone.
inline py::object OrNone(Items value) {
  return value == kNone ? py::object(py::none()) : py::object(py::int_(value));
}

// Slices as Python says them: [(query, lo, hi)].
inline py::list ToPython(const std::vector<rules::Slice>& slices) {
  py::list said(slices.size());
  for (std::size_t i = 0; i < slices.size(); ++i) {
    said[i] = py::make_tuple(slices[i].query, slices[i].lo, slices[i].hi);
  }
  return said;
}

// Speaks of a dispatcher that something else owns, or that it owns itself.
class Rules {
 public:
  explicit Rules(rules::Dispatcher* dispatcher) : dispatcher_(dispatcher) {}

  rules::Dispatcher& operator*() { return *dispatcher_; }
  rules::Dispatcher* operator->() { return dispatcher_; }
  Policies& policies() { return policies_; }

 private:
  rules::Dispatcher* dispatcher_;
  Policies policies_;
};

// One that owns its dispatcher: what a test holds to the specification.
struct OwnRules {
  explicit OwnRules(Items bound, std::vector<Items> most, double credit)
      : dispatcher(bound, std::move(most), credit), rules(&dispatcher) {}
  Dispatcher dispatcher;
  Rules rules;
};

inline std::vector<Items> MostItems(std::size_t accelerators,
                                    const std::vector<std::optional<Items>>& most_items) {
  std::vector<Items> most(accelerators, kNone);
  for (std::size_t i = 0; i < most_items.size() && i < accelerators; ++i) {
    most[i] = most_items[i].value_or(kNone);
  }
  return most;
}

inline py::object Add(Rules& rules, QueryId query, Items size, const py::object& policy,
                      double deadline_s, std::int64_t priority, double cost,
                      const std::string& client, Items model) {
  return OrNone(rules->Add({.id = query,
                            .size = size,
                            .policy = rules.policies().Read(policy),
                            .deadline_s = deadline_s,
                            .priority = priority,
                            .cost = cost,
                            .client = client,
                            .model = model}));
}

inline py::list Pull(Rules& rules, Items, double, Items idle) {
  std::vector<rules::Slice> slices;
  rules->Pull(idle, &slices);
  return ToPython(slices);
}

inline py::list PullOffloaded(Rules& rules, Items accelerator, double) {
  std::vector<rules::Slice> slices;
  rules->PullOffloaded(accelerator, &slices);
  return ToPython(slices);
}

inline std::vector<QueryId> Expire(Rules& rules, double now) {
  std::vector<rules::Expired> expired;
  rules->Expire(now, &expired);
  std::vector<QueryId> queries;
  for (const auto& one : expired) queries.push_back(one.query);
  return queries;
}

inline std::vector<std::pair<QueryId, Items>> Offloaded(Rules& rules, Items accelerator) {
  std::vector<std::pair<QueryId, Items>> found;
  for (const rules::Entry* entry : rules->Offloaded(accelerator)) {
    found.emplace_back(entry->id, entry->size);
  }
  return found;
}

inline void BindDispatcher(py::module_& module) {
  // Python's own, so that whoever catches one catches both.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const rules::QueueFull& full) {
      const auto kind = py::module_::import("deeprecsys.rules.dispatch").attr("QueueFull");
      PyErr_SetString(kind.ptr(), full.what());
    }
  });
  using namespace py::literals;
  py::class_<Rules>(module, "Rules")
      .def("__len__", [](Rules& rules) { return rules->size(); })
      .def_property_readonly("queued_items", [](Rules& rules) { return rules->queued_items(); })
      .def_property_readonly("offloaded_items",
                             [](Rules& rules) { return rules->offloaded_items(); })
      .def_property_readonly("has_deadlines", [](Rules& rules) { return rules->has_deadlines(); })
      .def("open_queries", [](Rules& rules) { return rules->OpenQueries(); })
      .def("add", &Add, "query"_a, "size"_a, "policy"_a, "deadline_s"_a = rules::kNever,
           "priority"_a = 0, "cost"_a = 0.0, "client"_a = "", "model"_a = 0)
      .def("add_model", [](Rules& rules, double weight) { return rules->AddModel(weight); })
      .def("remove_model", [](Rules& rules, Items model) { rules->RemoveModel(model); })
      .def("open_of", [](Rules& rules, Items model) { return rules->OpenOf(model); })
      .def("weigh",
           [](Rules& rules, Items model, double weight) { rules->Weigh(model, weight); })
      .def("items_of", [](Rules& rules, Items model) { return rules->ItemsOf(model); })
      .def("pull", &Pull, "worker"_a, "now"_a, "idle"_a = 1)
      .def("pull_offloaded", &PullOffloaded, "accelerator"_a, "now"_a)
      .def("choice",
           [](Rules& rules, Items size, const py::object& policy) {
             return OrNone(rules->Choice(size, rules.policies().Read(policy)));
           })
      .def(
          "ahead",
          [](Rules& rules, std::int64_t priority, const std::string& client, Items size,
             Items model, double cost) {
            return rules->Ahead(priority, client, size, model, cost);
          },
          "priority"_a = 0, "client"_a = "", "size"_a = 1, "model"_a = 0, "cost"_a = 0.0)
      .def(
          "ahead_offloaded",
          [](Rules& rules, Items accelerator, std::int64_t priority, const std::string& client,
             Items size) { return rules->AheadOffloaded(accelerator, priority, client, size); },
          "accelerator"_a, "priority"_a = 0, "client"_a = "", "size"_a = 1)
      .def("offloaded", &Offloaded, "accelerator"_a)
      .def("retire", [](Rules& rules, Items accelerator,
                        const std::vector<double>& costs) { rules->Retire(accelerator, costs); })
      .def("restore", [](Rules& rules, Items accelerator) { rules->Restore(accelerator); })
      .def("finish",
           [](Rules& rules, QueryId query, Items items) { return rules->Finish(query, items); })
      .def("drop", [](Rules& rules, QueryId query) { return rules->Drop(query); })
      .def("expire", &Expire, "now"_a)
      .def("next_deadline_s", [](Rules& rules) { return rules->NextDeadlineS(); });
  py::class_<OwnRules>(module, "Dispatcher")
      .def(py::init([](std::optional<Items> bound, std::size_t accelerators,
                       const std::vector<std::optional<Items>>& most_items, double credit) {
             return std::make_unique<OwnRules>(bound.value_or(kNone),
                                               MostItems(accelerators, most_items), credit);
           }),
           "max_queued_items"_a = py::none(), "accelerators"_a = 0,
           "most_items"_a = std::vector<std::optional<Items>>{}, "credit"_a = rules::kCredit)
      .def_property_readonly(
          "rules", [](OwnRules& own) -> Rules& { return own.rules; },
          py::return_value_policy::reference_internal);
}

}  // namespace deeprecsys::bindings
