// Executors without a model: `runtimes/stub.py` says what for.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/executor.h"

namespace deeprecsys::engine {

// Prepares a query's inputs as one that computes would, and executes nothing.
class NoOp {
 public:
  Executor executor();
};

// Takes service_s [items] seconds a request, of more items than it knows as long as of the last.
class FixedTime {
 public:
  explicit FixedTime(std::vector<double> service_s) : service_s_(std::move(service_s)) {}
  Executor executor();
  void Execute(const Piece* pieces, std::size_t count) const;

 private:
  std::vector<double> service_s_;
};

}  // namespace deeprecsys::engine
