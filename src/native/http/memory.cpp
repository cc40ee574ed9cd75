#include "http/memory.h"

#include <errno.h>
#include <unistd.h>

#include <utility>

namespace deeprecsys::http {

namespace {

using Guard = std::lock_guard<std::mutex>;

}  // namespace

Region::~Region() { close(file_); }

bool Region::Has(std::int64_t offset, std::int64_t size) const {
  return offset >= 0 && size >= 0 && offset <= size_ && size <= size_ - offset;
}

bool Region::Read(std::int64_t offset, std::int64_t size, char* to) const {
  while (size > 0) {
    const ssize_t got = pread(file_, to, static_cast<std::size_t>(size), offset_ + offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    offset += got;
    size -= got;
    to += got;
  }
  return true;
}

void Memory::Put(const std::string& name, std::shared_ptr<const Region> region) {
  const Guard guard(mutex_);
  regions_[name] = std::move(region);
}

void Memory::Drop(const std::string& name) {
  const Guard guard(mutex_);
  regions_.erase(name);
}

std::shared_ptr<const Region> Memory::Find(std::string_view name) const {
  const Guard guard(mutex_);
  const auto at = regions_.find(name);
  return at != regions_.end() ? at->second : nullptr;
}

}  // namespace deeprecsys::http
