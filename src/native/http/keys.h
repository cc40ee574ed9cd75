// Keys that clients bring with their queries, known by their SHA-256 (FIPS 180-4). Who may do more
// than ask queries, and what is said to others, is Python's: `serving/keys.py`.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace deeprecsys::http {

// 32 bytes.
std::string Sha256(std::string_view data);

// From any thread: which keys are asked for may change while queries are read.
class Keys {
 public:
  // None: no key is asked for.
  void Set(std::vector<std::string> digests);
  bool Asked() const;
  // Compares with all of them, in a time that says nothing of where they differ.
  bool Have(std::string_view key) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> digests_;
};

}  // namespace deeprecsys::http
