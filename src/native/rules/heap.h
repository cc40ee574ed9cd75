// A binary heap that lays its elements out as Python's `heapq` does.
//
// The order in which elements leave is any heap's. `Line::Ahead` looks at the first elements of the
// array as it lies, as `rules/line.py` does, so that the two agree only if the array does.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace deeprecsys::rules {

template <typename T>
class Heap {
 public:
  bool empty() const { return data_.empty(); }
  std::size_t size() const { return data_.size(); }
  const T& front() const { return data_.front(); }
  const std::vector<T>& data() const { return data_; }

  void Push(T item) {
    data_.push_back(std::move(item));
    Rise(0, data_.size() - 1);
  }

  void Pop() {
    T last = std::move(data_.back());
    data_.pop_back();
    if (!data_.empty()) Replace(std::move(last));
  }

  // The first, by another.
  void Replace(T item) {
    data_.front() = std::move(item);
    Sink(0);
  }

  // Keeps those of which `keeps` says so.
  template <typename Keeps>
  void Filter(Keeps keeps) {
    std::erase_if(data_, [&](const T& item) { return !keeps(item); });
    for (std::size_t at = data_.size() / 2; at-- > 0;) Sink(at);
  }

 private:
  // Towards the root, but not above `top`.
  void Rise(std::size_t top, std::size_t at) {
    T item = std::move(data_[at]);
    while (at > top) {
      const std::size_t parent = (at - 1) / 2;
      if (!(item < data_[parent])) break;
      data_[at] = std::move(data_[parent]);
      at = parent;
    }
    data_[at] = std::move(item);
  }

  // Down to a leaf by the smaller children, and then up again.
  void Sink(std::size_t at) {
    const std::size_t top = at, end = data_.size();
    T item = std::move(data_[at]);
    std::size_t child = 2 * at + 1;
    while (child < end) {
      if (child + 1 < end && !(data_[child] < data_[child + 1])) ++child;
      data_[at] = std::move(data_[child]);
      at = child;
      child = 2 * at + 1;
    }
    data_[at] = std::move(item);
    Rise(top, at);
  }

  std::vector<T> data_;
};

}  // namespace deeprecsys::rules
