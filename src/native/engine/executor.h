// What executes requests, as plain C: another extension may bring one, and neither knows the
// other's C++. None of it takes the GIL.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// A query's inputs: where each column of its pool begins. rows [columns]: of each, `size`, or 1
// where all candidates share it. scores: where they go; null: the executor has a place of its own.
struct deeprecsys_window {
  std::int64_t size;
  std::size_t columns;
  const void* const* data;
  const std::int64_t* rows;
  void* scores;
};

// Items lo .. hi - 1 of a prepared query.
struct deeprecsys_piece {
  void* prepared;
  std::int64_t lo;
  std::int64_t hi;
};

struct deeprecsys_executor {
  void* self;
  // Once a query, by who hands it over. Null: it cannot be had.
  void* (*prepare)(void* self, const deeprecsys_window* window);
  // One request, by any thread; not 0: it failed.
  int (*execute)(void* self, const deeprecsys_piece* pieces, std::size_t count);
  // The query is over.
  void (*forget)(void* self, void* prepared);
  // Why this thread's last request failed, until its next does. Null: none ever fails.
  const char* (*why)(void* self);
};
}

namespace deeprecsys::engine {

using Executor = deeprecsys_executor;
using Piece = deeprecsys_piece;
using Window = deeprecsys_window;

// What capsules that hold an executor are called.
inline constexpr const char* kExecutorName = "deeprecsys_executor";

}  // namespace deeprecsys::engine
