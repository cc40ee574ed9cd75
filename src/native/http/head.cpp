#include "http/head.h"

#include <algorithm>
#include <array>

namespace deeprecsys::http {

namespace {

constexpr std::string_view kEnd = "\r\n\r\n";
constexpr std::size_t kMostDigits = 12;
constexpr std::int64_t kMostJson = 16 << 10;

bool Lower(std::string_view text, std::string* lower) {
  lower->clear();
  for (const char c : text) {
    const bool token = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!token && !(c >= 'A' && c <= 'Z')) return false;  // rarer ones are Python's
    lower->push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  return !text.empty();
}

bool SameWithoutCase(std::string_view text, std::string_view lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a - 'A' + 'a') : a) == b;
  });
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool Number(std::string_view text, std::int64_t* number) {
  if (text.empty() || text.size() > kMostDigits) return false;
  *number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    *number = 10 * *number + (c - '0');
  }
  return true;
}

bool IsPlain(std::string_view value) {
  return std::all_of(value.begin(), value.end(), [](char c) { return (c >= ' ' && c < 127); });
}

// Of a request whose body, or whose answer, is not a plain one.
constexpr std::array<std::string_view, 7> kUnusual = {
    "transfer-encoding", "content-encoding", "accept-encoding", "expect", "upgrade", "te",
    "trailer"};

bool RequestLine(std::string_view line, const Usual& usual, std::size_t* path) {
  constexpr std::string_view kMethod = "POST ", kVersion = " HTTP/1.1";
  if (!line.starts_with(kMethod) || !line.ends_with(kVersion)) return false;
  if (line.size() < kMethod.size() + kVersion.size()) return false;
  line.remove_prefix(kMethod.size());
  line.remove_suffix(kVersion.size());
  const auto at = std::find(usual.paths.begin(), usual.paths.end(), line);
  *path = static_cast<std::size_t>(at - usual.paths.begin());
  return at != usual.paths.end();
}

}  // namespace

Found ReadHead(std::string_view data, const Usual& usual, Head* head) {
  const std::size_t end = data.find(kEnd);
  if (end == std::string_view::npos) return Found::kMore;
  *head = {.bytes = end + kEnd.size(), .length = -1, .json = -1};
  std::string_view rest = data.substr(0, end + 2);
  std::size_t stop = rest.find("\r\n");
  if (!RequestLine(rest.substr(0, stop), usual, &head->path)) return Found::kOther;
  rest.remove_prefix(stop + 2);
  const bool asked = usual.keys->Asked();
  bool allowed = !asked;
  bool host = false, authorized = false;
  std::string name;
  while (!rest.empty()) {
    stop = rest.find("\r\n");
    const std::string_view line = rest.substr(0, stop);
    rest.remove_prefix(stop + 2);
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || !Lower(line.substr(0, colon), &name)) {
      return Found::kOther;
    }
    const std::string_view value = Trim(line.substr(colon + 1));
    if (!IsPlain(value)) return Found::kOther;
    if (name == "content-length") {
      if (head->length >= 0 || !Number(value, &head->length)) return Found::kOther;
    } else if (name == "inference-header-content-length") {
      if (head->json >= 0 || !Number(value, &head->json)) return Found::kOther;
    } else if (name == "host") {
      if (host) return Found::kOther;
      host = true;
    } else if (name == "connection") {
      if (!SameWithoutCase(value, "keep-alive")) return Found::kOther;
    } else if (name == "authorization" && asked) {
      constexpr std::string_view kBearer = "bearer ";
      if (authorized || !SameWithoutCase(value.substr(0, kBearer.size()), kBearer)) {
        return Found::kOther;
      }
      authorized = true;
      allowed = usual.keys->Have(value.substr(kBearer.size()));
    } else if (name == "accept-encoding" && SameWithoutCase(value, "identity")) {
      continue;
    } else if (std::find(kUnusual.begin(), kUnusual.end(), name) != kUnusual.end()) {
      return Found::kOther;
    }
  }
  // What is short and without binary tensors may say where in shared memory they lie.
  if (head->json < 0 && head->length <= kMostJson) head->json = head->length;
  const bool lengths = head->json > 0 && head->json <= head->length;
  return allowed && lengths ? Found::kUsual : Found::kOther;
}

}  // namespace deeprecsys::http
