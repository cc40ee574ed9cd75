// The head of an HTTP/1.1 request, as far as it is the usual one: `POST` of a query, its length
// known. Whatever else a head may say is not read here but by Python (`serving/http_head.py`), so
// this refuses nothing: it answers that the request is another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "http/keys.h"

namespace deeprecsys::http {

enum class Found { kMore, kUsual, kOther };

// bytes: of the head itself. length: of the body, of which `json` are its JSON head. path: which.
struct Head {
  std::size_t bytes = 0;
  std::size_t path = 0;
  std::int64_t length = 0;
  std::int64_t json = 0;
};

// paths: that take queries. keys: that clients must bring.
struct Usual {
  std::vector<std::string> paths;
  std::shared_ptr<Keys> keys = std::make_shared<Keys>();
};

// data: what has come of it, and perhaps of what follows it.
Found ReadHead(std::string_view data, const Usual& usual, Head* head);

}  // namespace deeprecsys::http
