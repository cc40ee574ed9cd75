#include "http/request.h"

#include <algorithm>
#include <cstring>

namespace deeprecsys::http {

namespace {

constexpr std::int64_t kMostNumber = std::int64_t{1} << 53;

// Plain JSON: texts of printable ASCII without escapes, whole numbers, no nesting of its own.
class Reader {
 public:
  explicit Reader(std::string_view text) : at_(text.data()), end_(at_ + text.size()) {}

  bool Take(char c) {
    Space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool AtEnd() {
    Space();
    return at_ == end_;
  }
  bool Text(std::string_view* text) {
    if (!Take('"')) return false;
    const char* begin = at_;
    while (at_ != end_ && *at_ != '"') {
      const auto c = static_cast<unsigned char>(*at_);  // whether or not a char has a sign
      if (c < ' ' || c == '\\' || c >= 127) return false;
      ++at_;
    }
    if (at_ == end_) return false;
    *text = {begin, static_cast<std::size_t>(at_++ - begin)};
    return true;
  }
  bool Number(std::int64_t* number) {
    Space();
    const char* begin = at_;
    *number = 0;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') {
      *number = 10 * *number + (*at_++ - '0');
      if (*number > kMostNumber) return false;
    }
    const bool leading = at_ - begin > 1 && *begin == '0';
    return at_ != begin && !leading && (at_ == end_ || !std::strchr(".eE", *at_));
  }
  bool Flag(bool* flag) {
    Space();
    const std::string_view rest(at_, static_cast<std::size_t>(end_ - at_));
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "true" : "false";
      if (!rest.starts_with(word)) continue;
      at_ += word.size();
      *flag = value;
      return true;
    }
    return false;
  }
  // Each member by `member(key)`; of those it does not know, or that came before, false.
  template <typename Member>
  bool Object(Member member) {
    if (!Take('{')) return false;
    if (Take('}')) return true;
    do {
      std::string_view key;
      if (!Text(&key) || !Take(':') || !member(key)) return false;
    } while (Take(','));
    return Take('}');
  }
  template <typename Item>
  bool List(Item item) {
    if (!Take('[')) return false;
    if (Take(']')) return true;
    do {
      if (!item()) return false;
    } while (Take(','));
    return Take(']');
  }

 private:
  void Space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  const char* at_;
  const char* end_;
};

// Each member of an object once.
class Once {
 public:
  bool operator()(int member) {
    const bool first = (seen_ >> member & 1) == 0;
    seen_ |= 1U << member;
    return first;
  }

 private:
  unsigned seen_ = 0;
};

bool ReadTensor(Reader* reader, Request* request) {
  Tensor tensor;
  tensor.shape = request->shapes.size();
  std::int64_t size = -1;
  bool shared = false;
  Once once;
  const bool read = reader->Object([&](std::string_view key) {
    if (key == "name") return once(0) && reader->Text(&tensor.name);
    if (key == "datatype") return once(1) && reader->Text(&tensor.datatype);
    if (key == "shape") {
      return once(2) && reader->List([&] {
        ++tensor.dims;
        return reader->Number(&request->shapes.emplace_back());
      });
    }
    if (key != "parameters" || !once(3)) return false;
    Once member;
    return reader->Object([&](std::string_view name) {
      if (name == "binary_data_size") return member(0) && reader->Number(&tensor.bytes);
      shared = true;
      if (name == "shared_memory_region") return member(1) && reader->Text(&tensor.region);
      if (name == "shared_memory_byte_size") return member(2) && reader->Number(&size);
      return name == "shared_memory_offset" && member(3) && reader->Number(&tensor.offset);
    });
  });
  if (shared && (tensor.region.empty() || tensor.bytes >= 0)) return false;
  if (shared) tensor.bytes = size;
  request->tensors.push_back(tensor);
  return read && tensor.bytes >= 0 && !tensor.name.empty();
}

bool ReadOutput(Reader* reader, Request* request) {
  if (!request->output.empty()) return false;
  Once once;
  const bool read = reader->Object([&](std::string_view key) {
    if (key == "name") return once(0) && reader->Text(&request->output);
    if (key != "parameters" || !once(1)) return false;
    Once flag;
    return reader->Object([&](std::string_view name) {
      request->said = true;
      return name == "binary_data" && flag(0) && reader->Flag(&request->binary);
    });
  });
  return read && !request->output.empty();
}

std::int64_t WidthOf(std::string_view datatype) {
  if (datatype == "FP32" || datatype == "INT32") return 4;
  return datatype == "INT64" ? 8 : 0;
}

bool BindOne(const Request& request, const Tensor& tensor, const Input& input, const char* data,
             std::int64_t* rows) {
  if (tensor.datatype != input.datatype || tensor.dims != 1 + input.shape.size()) return false;
  std::int64_t bytes = *rows = request.shapes[tensor.shape];
  if (*rows > kMostNumber >> 24) return false;
  bytes *= WidthOf(input.datatype);
  for (std::size_t i = 0; i < input.shape.size(); ++i) {
    if (request.shapes[tensor.shape + 1 + i] != input.shape[i]) return false;
    bytes *= input.shape[i];
  }
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  return tensor.bytes == bytes && address % WidthOf(input.datatype) == 0;
}

// These look at every value of a query, so they are compiled for processors that have AVX2 as well.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define DEEPRECSYS_WIDE __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define DEEPRECSYS_WIDE
#endif

// Not 0: one is not; a negative id is a huge unsigned one.
DEEPRECSYS_WIDE std::uint32_t NotBelow(const std::uint32_t* ids, std::int64_t count,
                                       std::uint32_t rows) {
  std::uint32_t wrong = 0;
  for (std::int64_t i = 0; i < count; ++i) wrong |= ids[i] >= rows;
  return wrong;
}

DEEPRECSYS_WIDE std::uint64_t NotBelow(const std::uint64_t* ids, std::int64_t count,
                                       std::uint64_t rows) {
  std::uint64_t wrong = 0;
  for (std::int64_t i = 0; i < count; ++i) wrong |= ids[i] >= rows;
  return wrong;
}

// Of FP32, by their bits.
DEEPRECSYS_WIDE std::uint32_t NotFinite(const std::uint32_t* bits, std::int64_t count) {
  std::uint32_t wrong = 0;
  for (std::int64_t i = 0; i < count; ++i) wrong |= (bits[i] & 0x7FFFFFFFU) >= 0x7F800000U;
  return wrong;
}

}  // namespace

bool ReadRequest(std::string_view json, Request* request) {
  Reader reader(json);
  Once once;
  bool usual = false;
  request->tensors.clear();
  request->shapes.clear();
  const bool read = reader.Object([&](std::string_view key) {
    if (key == "id") return once(0) && reader.Text(&request->id);
    if (key == "inputs") {
      return once(1) && reader.List([&] { return ReadTensor(&reader, request); });
    }
    if (key == "outputs") {
      return once(2) && reader.List([&] { return ReadOutput(&reader, request); });
    }
    if (key != "parameters" || !once(3)) return false;
    Once member;
    return reader.Object([&](std::string_view name) {
      if (name == "binary_data_output") return member(0) && reader.Flag(&usual);
      if (name == "timeout") return member(1) && reader.Number(&request->timeout_us);
      return name == "priority" && member(2) && reader.Number(&request->priority);
    });
  });
  if (!request->said) request->binary = usual;
  return read && reader.AtEnd() && !request->tensors.empty();
}

bool Bind(const Request& request, const std::vector<Input>& inputs, std::string_view body,
          Inputs* bound, const char* shared) {
  if (request.tensors.size() != inputs.size()) return false;
  bound->candidates = -1;
  bound->data.assign(inputs.size(), nullptr);
  bound->rows.assign(inputs.size(), -1);
  std::size_t next = 0;  // clients send them in order, as a rule
  for (const Tensor& tensor : request.tensors) {
    const bool apart = !tensor.region.empty();
    if (apart ? shared == nullptr : tensor.bytes > static_cast<std::int64_t>(body.size())) {
      return false;
    }
    const char* data = apart ? shared : body.data();
    std::size_t looked = 0;
    while (looked < inputs.size() && inputs[next].name != tensor.name) {
      next = (next + 1) % inputs.size();
      ++looked;
    }
    if (looked == inputs.size() || bound->rows[next] >= 0) return false;
    if (!BindOne(request, tensor, inputs[next], data, &bound->rows[next])) return false;
    bound->data[next] = data;
    if (inputs[next].counted) bound->candidates = bound->rows[next];
    if (apart) {
      shared += Padded(tensor.bytes);
    } else {
      body.remove_prefix(static_cast<std::size_t>(tensor.bytes));
    }
    next = (next + 1) % inputs.size();
  }
  if (!body.empty() || bound->candidates < 1) return false;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const bool one = inputs[i].shared && bound->rows[i] == 1;
    if (bound->rows[i] != bound->candidates && !one) return false;
  }
  return true;
}

bool AreValid(const std::vector<Input>& inputs, const Inputs& bound) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Input& input = inputs[i];
    std::int64_t count = bound.rows[i];
    for (const std::int64_t size : input.shape) count *= size;
    const auto* narrow = static_cast<const std::uint32_t*>(bound.data[i]);
    const auto* wide = static_cast<const std::uint64_t*>(bound.data[i]);
    bool wrong = false;
    if (input.datatype == "FP32") {
      wrong = NotFinite(narrow, count) != 0;
    } else if (input.rows != 0 && WidthOf(input.datatype) == 4) {
      const std::int64_t rows = std::min(input.rows, std::int64_t{1} << 31);
      wrong = NotBelow(narrow, count, static_cast<std::uint32_t>(rows)) != 0;
    } else if (input.rows != 0) {
      wrong = NotBelow(wide, count, static_cast<std::uint64_t>(input.rows)) != 0;
    }
    if (wrong) return false;
  }
  return true;
}

}  // namespace deeprecsys::http
