// What is written by hand to read what clients send: a usual request is read as it is meant, and no
// mutation of one reads beyond what was given, or is taken for what it does not say.
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "http/head.h"
#include "http/request.h"
#include "tests/check.h"

using namespace deeprecsys::http;

namespace {

const Usual kUsual{{"/v2/models/m/infer"}};
const std::string kHead =
    "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    "Inference-Header-Content-Length: 200\r\nContent-Length: 300\r\n\r\n";
const std::string kJson =
    "{\"id\": \"q1\", \"inputs\":[{\"name\":\"ids\",\"shape\":[3,1],\"datatype\":\"INT32\","
    "\"parameters\":{\"binary_data_size\":12}},{\"name\":\"dense\",\"shape\":[3,2],"
    "\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":24}}],"
    "\"parameters\":{\"timeout\":5000,\"priority\":2,\"binary_data_output\":true}}";
const std::string kSharedJson =
    "{\"inputs\":[{\"name\":\"ids\",\"shape\":[3,1],\"datatype\":\"INT32\",\"parameters\":"
    "{\"shared_memory_region\":\"in\",\"shared_memory_byte_size\":12}},{\"name\":\"dense\","
    "\"shape\":[3,2],\"datatype\":\"FP32\",\"parameters\":{\"shared_memory_region\":\"in\","
    "\"shared_memory_byte_size\":24,\"shared_memory_offset\":12}}]}";
const std::vector<Input> kInputs = {{"ids", "INT32", {1}, 50, false, true},
                                    {"dense", "FP32", {2}, 0, false, false}};

// A copy of its own size, so that a reader that goes beyond it is found out.
struct Exact {
  explicit Exact(const std::string& text) : size(text.size()), data(new char[size + !size]) {
    std::memcpy(data.get(), text.data(), size);
  }
  std::string_view view() const { return {data.get(), size}; }
  std::size_t size;
  std::unique_ptr<char[]> data;
};

Found Read(const std::string& text, Head* head, const Usual& usual = kUsual) {
  return ReadHead(Exact(text).view(), usual, head);
}

void UsualOnesAreRead() {
  Head head;
  CHECK(Read(kHead, &head) == Found::kUsual);
  CHECK(head.bytes == kHead.size() && head.length == 300 && head.json == 200);
  CHECK(Read(kHead.substr(0, kHead.size() - 1), &head) == Found::kMore);
  Request request;
  const Exact json(kJson);
  CHECK(ReadRequest(json.view(), &request));
  CHECK(request.id == "q1" && request.binary && request.timeout_us == 5000);
  CHECK(request.priority == 2 && request.tensors.size() == 2);
  std::vector<std::int32_t> data = {1, 2, 49, 0, 0, 0, 0, 0, 0};
  const std::string_view body(reinterpret_cast<const char*>(data.data()), 36);
  Inputs bound;
  CHECK(Bind(request, kInputs, body, &bound) && bound.candidates == 3);
  CHECK(AreValid(kInputs, bound));
  for (const std::int32_t wrong : {50, -1}) {
    data[2] = wrong;
    CHECK(!AreValid(kInputs, bound));
  }
  data[2] = 1;
  data[8] = 0x7F800000;  // infinity
  CHECK(!AreValid(kInputs, bound));
  CHECK(!Bind(request, kInputs, body.substr(0, 32), &bound));
}

// Of two tensors the first lies in shared memory, the second comes with the body.
void WhatLiesInSharedMemoryIsFound() {
  const auto head = [](const std::string& parameters) {
    return "{\"inputs\":[{\"name\":\"ids\",\"shape\":[3,1],\"datatype\":\"INT32\","
           "\"parameters\":{" + parameters + "}},{\"name\":\"dense\",\"shape\":[3,2],"
           "\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":24}}]}";
  };
  const std::string region = "\"shared_memory_region\":\"in\"", offset =
      "\"shared_memory_offset\":64", size = "\"shared_memory_byte_size\":12";
  Request request;
  const Exact json(head(region + "," + offset + "," + size));
  CHECK(ReadRequest(json.view(), &request));
  CHECK(request.tensors[0].region == "in" && request.tensors[0].offset == 64);
  CHECK(request.tensors[0].bytes == 12 && request.tensors[1].region.empty());
  const std::vector<std::int32_t> ids = {1, 2, 49, 0}, body = {0, 0, 0, 0, 0, 0};
  const std::string_view sent(reinterpret_cast<const char*>(body.data()), 24);
  const auto* shared = reinterpret_cast<const char*>(ids.data());
  Inputs bound;
  CHECK(Bind(request, kInputs, sent, &bound, shared) && AreValid(kInputs, bound));
  CHECK(bound.data[0] == ids.data() && bound.data[1] == body.data());
  CHECK(!Bind(request, kInputs, sent, &bound));
  for (const std::string& wrong :
       {region, size, region + "," + offset, region + "," + size + ",\"binary_data_size\":12",
        region + "," + size + "," + region, "\"shared_memory_region\":\"\"," + size,
        region + ",\"shared_memory_byte_size\":-12", region + "," + size + ",\"other\":1"}) {
    const Exact text(head(wrong));
    CHECK(!ReadRequest(text.view(), &request));
  }
}

void WhatIsUnusualIsAnothers() {
  Head head;
  const auto with = [](const std::string& line) {
    return kHead.substr(0, kHead.size() - 2) + line + "\r\n\r\n";
  };
  for (const char* line :
       {"Transfer-Encoding: chunked", "Content-Length: 300", "Content-Length: 301",
        "Expect: 100-continue", "Connection: close", "Accept-Encoding: gzip", " folded",
        "Bad Name: 1", "Content-Encoding: gzip", "No colon", "Host: y"}) {
    CHECK(Read(with(line), &head) == Found::kOther);
  }
  CHECK(Read(with("X-Request-Id: 1"), &head) == Found::kUsual);
  const Usual keyed{kUsual.paths};
  keyed.keys->Set({Sha256("the one before"), Sha256("secret")});
  CHECK(Read(kHead, &head, keyed) == Found::kOther);
  CHECK(Read(with("Authorization: Bearer secre"), &head, keyed) == Found::kOther);
  CHECK(Read(with("Authorization: Bearer "), &head, keyed) == Found::kOther);
  CHECK(Read(with("Authorization: Basic secret"), &head, keyed) == Found::kOther);
  CHECK(Read(with("authorization: bearer secret"), &head, keyed) == Found::kUsual);
  CHECK(Read(with("Authorization: Bearer the one before"), &head, keyed) == Found::kUsual);
  keyed.keys->Set({Sha256("the next")});
  CHECK(Read(with("Authorization: Bearer secret"), &head, keyed) == Found::kOther);
  CHECK(Read(with("Authorization: Bearer the next"), &head, keyed) == Found::kUsual);
  keyed.keys->Set({});
  CHECK(Read(kHead, &head, keyed) == Found::kUsual);
  Request request;
  for (const char* json :
       {"", "{}", "[]", "{\"inputs\":[]}", "{\"inputs\":[{\"name\":\"a\\n\"}]}", "nul"}) {
    const Exact text{std::string(json)};
    CHECK(!ReadRequest(text.view(), &request));
  }
}

// Of FIPS 180-4's own examples, and around the ends of blocks (as Python's hashlib has them).
void DigestsAreSha256() {
  const auto hex = [](const std::string& digest) {
    std::string text;
    for (const char c : digest) {
      for (const int half : {c >> 4 & 15, c & 15}) text.push_back("0123456789abcdef"[half]);
    }
    return text;
  };
  CHECK(hex(Sha256("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hex(Sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex(Sha256(std::string(55, 'a'))) ==
        "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(hex(Sha256(std::string(56, 'a'))) ==
        "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(hex(Sha256(std::string(63, 'a'))) ==
        "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34");
  CHECK(hex(Sha256(std::string(64, 'a'))) ==
        "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
  CHECK(hex(Sha256(std::string(65, 'a'))) ==
        "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0");
  CHECK(hex(Sha256(std::string(200, 'a'))) ==
        "c2a908d98f5df987ade41b5fce213067efbcc21ef2240212a41e54b5e7c28ae5");
}

std::string Mutated(const std::string& from, std::mt19937_64* random) {
  std::string text = from;
  for (std::uint64_t turns = 1 + (*random)() % 3; turns != 0; --turns) {
    const std::size_t at = (*random)() % text.size();
    switch ((*random)() % 4) {
      case 0:
        text[at] = static_cast<char>((*random)());
        break;
      case 1:
        text.erase(at, 1 + (*random)() % 8);
        break;
      case 2:
        text.insert(at, text.substr((*random)() % text.size(), (*random)() % 16));
        break;
      default:
        text.resize(at + 1);
    }
    if (text.empty()) text = " ";
  }
  return text;
}

void MutationsAreReadWithoutHarm(int count) {
  std::mt19937_64 random(1);
  const std::string data(36, '\0');
  int usual = 0;
  for (int i = 0; i < count; ++i) {
    Head head;
    if (Read(Mutated(kHead, &random), &head) == Found::kUsual) {
      CHECK(head.json > 0 && head.json <= head.length);
      ++usual;
    }
    const Exact json(Mutated(i % 3 ? kJson : kSharedJson, &random));
    const Exact body(i % 2 ? Mutated(data, &random) : data);
    Request request;
    Inputs bound;
    if (!ReadRequest(json.view(), &request)) continue;
    std::int64_t shared = 0;
    for (const Tensor& tensor : request.tensors) {
      if (!tensor.region.empty()) shared += Padded(tensor.bytes);
    }
    if (shared > 1 << 20) continue;  // as the door does
    const Exact apart(std::string(static_cast<std::size_t>(shared), '\0'));
    const char* memory = shared != 0 ? apart.data.get() : nullptr;
    if (!Bind(request, kInputs, body.view(), &bound, memory)) continue;
    CHECK(bound.candidates == 3 && body.size + static_cast<std::size_t>(shared) >= 36);
    AreValid(kInputs, bound);
    ++usual;
  }
  CHECK(usual > count / 100);
}

}  // namespace

int main(int count, char** arguments) {
  UsualOnesAreRead();
  WhatLiesInSharedMemoryIsFound();
  WhatIsUnusualIsAnothers();
  DigestsAreSha256();
  MutationsAreReadWithoutHarm(count > 1 ? std::atoi(arguments[1]) : 20'000);
}
