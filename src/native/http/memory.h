// Shared memory that clients registered, for queries that say where in it their tensors lie. Who may
// register what, and what is wrong with it, is Python's to say: `serving/shared_memory.py`, which
// also says why it is copied and not mapped.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace deeprecsys::http {

// Bytes [offset, offset + size) of a file, which is its own.
class Region {
 public:
  Region(int file, std::int64_t offset, std::int64_t size)
      : file_(file), offset_(offset), size_(size) {}
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  bool Has(std::int64_t offset, std::int64_t size) const;
  // Copies them; false: they are not there any more.
  bool Read(std::int64_t offset, std::int64_t size, char* to) const;

 private:
  const int file_;
  const std::int64_t offset_;
  const std::int64_t size_;
};

// By name; from any thread.
class Memory {
 public:
  void Put(const std::string& name, std::shared_ptr<const Region> region);
  void Drop(const std::string& name);
  // Null: there is none.
  std::shared_ptr<const Region> Find(std::string_view name) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Region>, std::less<>> regions_;
};

}  // namespace deeprecsys::http
