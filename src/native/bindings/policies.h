// Python's policies as the core reads them.
#pragma once

#include <pybind11/pybind11.h>

#include "rules/policy.h"

namespace deeprecsys::bindings {

// Reads a `core.Policy`; the same object as the last time costs nothing. Needs the GIL.
class Policies {
 public:
  const rules::Policy& Read(const pybind11::object& policy);

 private:
  pybind11::object last_;
  rules::Policy read_;
  pybind11::dict executions_;  // numbered as they come
};

inline rules::Items Field(const pybind11::object& policy, const char* name) {
  const pybind11::object value = policy.attr(name);
  return value.is_none() ? rules::kNone : value.cast<rules::Items>();
}

inline const rules::Policy& Policies::Read(const pybind11::object& policy) {
  if (policy.is(last_)) return read_;
  rules::Policy read;
  read.batch_size = Field(policy, "batch_size");
  read.offload_threshold = Field(policy, "offload_threshold");
  read.most_items = Field(policy, "most_items");
  read.offload_backlog = Field(policy, "offload_backlog");
  read.workers = Field(policy, "workers");
  read.adaptive = policy.attr("adaptive").cast<bool>();
  const pybind11::object execution = policy.attr("execution");
  if (!executions_.contains(execution)) executions_[execution] = executions_.size();
  read.execution = executions_[execution].cast<std::int64_t>();
  last_ = policy;
  read_ = read;
  return read_;
}

}  // namespace deeprecsys::bindings
