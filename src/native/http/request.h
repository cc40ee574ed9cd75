// A query as the protocol's JSON head says it, binary tensors behind it: as far as it is usual.
// `protocol/wire.py` reads every form, and says what is wrong with one; this answers no.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace deeprecsys::http {

// What an input must be. FP32 is finite, INT32 and INT64 are ids below `rows`, where that is not 0.
// shape: of a row. shared: all candidates may have one row. counted: its rows are the candidates.
struct Input {
  std::string name;
  std::string datatype;
  std::vector<std::int64_t> shape;
  std::int64_t rows = 0;
  bool shared = false;
  bool counted = false;
};

// What is read of a JSON head; texts point into it. shapes: of all tensors, one after another.
// region: of shared memory, in which it lies at that offset; empty: it comes with the body.
struct Tensor {
  std::string_view name;
  std::string_view datatype;
  std::size_t shape = 0;
  std::size_t dims = 0;
  std::int64_t bytes = -1;
  std::string_view region;
  std::int64_t offset = 0;
};
struct Request {
  std::string_view id;
  std::string_view output;  // empty: all
  // Of the answer: binary data, not JSON.
  bool binary = false;
  bool said = false;  // of its one output
  std::int64_t timeout_us = 0;
  std::int64_t priority = 0;
  std::vector<Tensor> tensors;
  std::vector<std::int64_t> shapes;
};

// False: it is not the usual one, or none.
bool ReadRequest(std::string_view json, Request* request);

// The inputs in a body: by input, where each lies and how many rows it has.
struct Inputs {
  std::int64_t candidates = 0;
  std::vector<const void*> data;
  std::vector<std::int64_t> rows;
};

// body: what lies behind the JSON head. shared: where what lies in shared memory will be, one tensor
// after another, each of so many bytes as `Padded` says. False: they are not what `inputs` asks for,
// in which case Python says how; values are not looked at.
bool Bind(const Request& request, const std::vector<Input>& inputs, std::string_view body,
          Inputs* bound, const char* shared = nullptr);
constexpr std::int64_t Padded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
// False: an id beyond its table, or a value that is not finite.
bool AreValid(const std::vector<Input>& inputs, const Inputs& bound);

}  // namespace deeprecsys::http
