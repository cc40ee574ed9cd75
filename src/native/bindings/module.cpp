// `deeprecsys._native`: the core for Python. What each part is, its own header says.
//
// One unit of translation: pybind11's own headers take ten seconds to compile.
#include <pybind11/pybind11.h>

#include "bindings/core.h"
#include "bindings/dispatcher.h"
#include "bindings/door.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native core: dispatcher, workers, executors, and the way of a query over HTTP.";
  deeprecsys::bindings::BindDispatcher(module);
  deeprecsys::bindings::BindCore(module);
  deeprecsys::bindings::BindDoor(module);
}
