// TorchScript as an executor: what `runtimes/torchscript.py` prepares and executes, without Python.
//
// Of the runtime it has the compiled modules; the order of inputs, what is joined and what
// candidates share are as `runtimes/eager.py` says, which is the specification.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/executor.h"

namespace deeprecsys::torchscript {

using engine::Piece;
using engine::Window;
using Module = torch::jit::Module;
using Tensors = std::vector<at::Tensor>;

// Of an input: where it is among the columns of a window, its type and the shape of a row.
struct Input {
  std::size_t column;
  at::ScalarType type;
  std::vector<std::int64_t> row;
};

// inputs: those that are tensors of their own, in order. joined: columns of one id each that are
// one tensor. of_query: positions, among `inputs`, of what candidates may share. tasks: scores a
// candidate.
struct Layout {
  std::vector<Input> inputs;
  std::vector<std::size_t> joined;
  std::vector<std::size_t> of_query;
  std::int64_t tasks = 1;
};

class Plan {
 public:
  // request: inputs, scores, lo, hi. one_user: users, inputs, scores, lo, hi. apart: of_user(users)
  // and rest(user, inputs, scores, lo, hi), where the user's part is kept for the query.
  Plan(Layout layout, Module request, std::optional<Module> one_user, std::optional<Module> apart);

  engine::Executor executor();

 private:
  struct Prepared;

  Prepared* Prepare(const engine::Window& window) const;
  void Execute(const engine::Piece* pieces, std::size_t count);
  void ExecuteOne(Prepared* prepared, std::int64_t lo, std::int64_t hi);
  void ExecuteTogether(const engine::Piece* pieces, std::size_t count);
  void Share(Prepared* prepared) const;
  Tensors Rows(const Prepared& prepared, std::int64_t lo, std::int64_t hi) const;

  Layout layout_;
  torch::jit::Method request_;
  std::optional<torch::jit::Method> one_user_;
  std::optional<torch::jit::Method> of_user_;
  std::optional<torch::jit::Method> rest_;
};

// users: inputs of one row for all; none where each candidate has its own. user: what was computed
// of them, once it was, where that is kept.
struct Plan::Prepared {
  Tensors tensors;
  Tensors users;
  at::Tensor scores;
  std::atomic<c10::IValue*> user{nullptr};
  ~Prepared() { delete user.load(); }
};

inline std::optional<torch::jit::Method> MethodOf(std::optional<Module>& module, const char* name) {
  if (!module) return std::nullopt;
  return module->get_method(name);
}

inline at::Tensor View(const Input& input, const Window& window) {
  std::vector<std::int64_t> shape{window.rows[input.column]};
  shape.insert(shape.end(), input.row.begin(), input.row.end());
  // Nothing here writes to inputs.
  return at::from_blob(const_cast<void*>(window.data[input.column]), shape,
                       at::TensorOptions(input.type));
}

// Of the columns of one id each, a row a candidate: written one after another, and seen across.
inline at::Tensor Join(const std::vector<std::size_t>& columns, const Window& window) {
  const auto count = static_cast<std::int64_t>(columns.size());
  at::Tensor ids = at::empty({count, window.size}, at::kInt);
  const std::size_t bytes = sizeof(std::int32_t) * window.size;
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(ids.data_ptr<std::int32_t>() + i * window.size, window.data[columns[i]], bytes);
  }
  return ids.t();
}

inline Plan::Plan(Layout layout, Module request, std::optional<Module> one_user,
                  std::optional<Module> apart)
    : layout_(std::move(layout)),
      request_(request.get_method("forward")),
      one_user_(MethodOf(one_user, "forward")),
      of_user_(MethodOf(apart, "of_user")),
      rest_(MethodOf(apart, "rest")) {}

// Of this thread's last request that failed.
inline std::string& Why() {
  thread_local std::string why;
  return why;
}

inline engine::Executor Plan::executor() {
  return {this,
          [](void* self, const Window* window) -> void* {
            try {
              return static_cast<Plan*>(self)->Prepare(*window);
            } catch (const std::exception&) {
              return nullptr;
            }
          },
          [](void* self, const Piece* pieces, std::size_t count) {
            try {
              static_cast<Plan*>(self)->Execute(pieces, count);
              return 0;
            } catch (const std::exception& error) {
              Why() = error.what();
              return 1;
            }
          },
          [](void*, void* prepared) { delete static_cast<Prepared*>(prepared); },
          [](void*) { return Why().c_str(); }};
}

inline Plan::Prepared* Plan::Prepare(const Window& window) const {
  auto prepared = std::make_unique<Prepared>();
  prepared->tensors.reserve(layout_.inputs.size() + 1);
  for (const Input& input : layout_.inputs) prepared->tensors.push_back(View(input, window));
  if (!layout_.joined.empty()) prepared->tensors.push_back(Join(layout_.joined, window));
  if (window.scores != nullptr) {
    prepared->scores = at::from_blob(window.scores, {window.size, layout_.tasks}, at::kFloat);
  } else {
    prepared->scores = at::empty({window.size, layout_.tasks}, at::kFloat);
  }
  if (!layout_.of_query.empty()) Share(prepared.get());
  return prepared.release();
}

// Takes out what all candidates share; nothing where that is not all of the user's: then what was
// shared has a row for each, as it has anyway where there is one candidate.
inline void Plan::Share(Prepared* prepared) const {
  Tensors& tensors = prepared->tensors;
  const std::int64_t n = prepared->scores.size(0);
  const auto& of_query = layout_.of_query;
  const bool all = std::all_of(of_query.begin(), of_query.end(),
                               [&](std::size_t i) { return tensors[i].size(0) == 1; });
  if (n == 1 || !all) {
    for (const std::size_t i : of_query) {
      if (tensors[i].size(0) != 1) continue;
      auto shape = tensors[i].sizes().vec();
      shape[0] = n;
      tensors[i] = tensors[i].expand(shape);
    }
    return;
  }
  Tensors rest;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const bool shared = std::find(of_query.begin(), of_query.end(), i) != of_query.end();
    (shared ? prepared->users : rest).push_back(tensors[i]);
  }
  tensors = std::move(rest);
}

inline void Plan::Execute(const Piece* pieces, std::size_t count) {
  const auto users = [](const Piece& piece) {
    return !static_cast<Prepared*>(piece.prepared)->users.empty();
  };
  // One by one, too, where each has a user of its own.
  if (count > 1 && !std::all_of(pieces, pieces + count, users)) {
    ExecuteTogether(pieces, count);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    ExecuteOne(static_cast<Prepared*>(pieces[i].prepared), pieces[i].lo, pieces[i].hi);
  }
}

inline void Plan::ExecuteOne(Prepared* prepared, std::int64_t lo, std::int64_t hi) {
  if (prepared->users.empty()) {
    request_({prepared->tensors, prepared->scores, lo, hi});
    return;
  }
  if (!of_user_) {
    (*one_user_)({prepared->users, prepared->tensors, prepared->scores, lo, hi});
    return;
  }
  c10::IValue* user = prepared->user.load(std::memory_order_acquire);
  if (user == nullptr) {  // two workers at a query's first slices both compute it
    auto computed = std::make_unique<c10::IValue>((*of_user_)({prepared->users}));
    if (prepared->user.compare_exchange_strong(user, computed.get())) user = computed.release();
  }
  (*rest_)({*user, prepared->tensors, prepared->scores, lo, hi});
}

// The slices copied into one batch, and its scores back to where each belongs.
inline void Plan::ExecuteTogether(const Piece* pieces, std::size_t count) {
  std::vector<Tensors> columns(layout_.inputs.size() + !layout_.joined.empty());
  std::int64_t items = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& prepared = *static_cast<const Prepared*>(pieces[i].prepared);
    const Tensors rows = Rows(prepared, pieces[i].lo, pieces[i].hi);
    for (std::size_t k = 0; k < rows.size(); ++k) columns[k].push_back(rows[k]);
    items += pieces[i].hi - pieces[i].lo;
  }
  Tensors joined;
  for (const Tensors& column : columns) joined.push_back(at::cat(column));
  at::Tensor scores = at::empty({items, layout_.tasks}, at::kFloat);
  request_({joined, scores, std::int64_t{0}, items});
  std::int64_t at = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& [prepared, lo, hi] = pieces[i];
    static_cast<Prepared*>(prepared)->scores.slice(0, lo, hi).copy_(
        scores.slice(0, at, at + hi - lo));
    at += hi - lo;
  }
}

// A row a candidate of every input, in the model's order.
inline Tensors Plan::Rows(const Prepared& prepared, std::int64_t lo, std::int64_t hi) const {
  Tensors rows;
  for (const at::Tensor& tensor : prepared.tensors) rows.push_back(tensor.slice(0, lo, hi));
  for (std::size_t k = 0; k < prepared.users.size(); ++k) {
    auto shape = prepared.users[k].sizes().vec();
    shape[0] = hi - lo;
    rows.insert(rows.begin() + static_cast<std::ptrdiff_t>(layout_.of_query[k]),
                prepared.users[k].expand(shape));
  }
  return rows;
}

}  // namespace deeprecsys::torchscript
