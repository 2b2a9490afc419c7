// A Triton backend for tests and benchmarks: members that answer what they are told, or misbehave.
//
// Model parameters, all optional:
//   answer      "0.25,0.75": a sample's answer (zeros, if nothing is said)
//   gain        is added to all of it, times the first number of the sample
//   delay_us    a call takes so long
//   fail_first  so many calls fail; -1: all
//   special     what happens to calls with a sample whose first number is 99: nan, fail, hold, hang
//   limit_us    calls on hold or hanging are answered after so long (never, if nothing is said)
//   gate        calls are held until there are so many, of all models with a gate, and then all answered
//   tell        "address": the answer is where the sample lies, in units of 2^24 and the rest
// Calls on hold or hanging are answered by a call with a sample whose first number is 98; those on hold fail when they are
// cancelled.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/json.h"
#include "triton/errors.h"

#define FAKE_EXPORT __attribute__((visibility("default")))

namespace {

using namespace averaging;

constexpr float kSpecial = 99, kRelease = 98;
constexpr TRITONSERVER_DataType kUint8 = static_cast<TRITONSERVER_DataType>(2);

class Member;

// A request that the member has not answered yet.
struct Call {
  Member* member;
  TRITONBACKEND_ModelInstance* instance;
  TRITONBACKEND_Request* request;
  std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
};

struct Input {
  TRITONSERVER_DataType type{};
  int64_t samples = 0;
  size_t row_bytes = 0;
  std::vector<std::pair<const char*, size_t>> pieces;

  // Where a sample begins; a sample is in one piece if nobody has cut the input.
  const char* sample(int64_t index) const {
    size_t offset = static_cast<size_t>(index) * row_bytes;
    for (const auto& [data, bytes] : pieces) {
      if (offset < bytes) return data + offset;
      offset -= bytes;
    }
    return nullptr;
  }

  float first_number(int64_t index) const {
    const char* data = sample(index);
    if (type == kUint8) return static_cast<unsigned char>(*data);
    float number;
    std::memcpy(&number, data, sizeof number);
    return number;
  }
};

Input input_of(TRITONBACKEND_Request* request) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
  Input result;
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint32_t dim_count = 0, buffer_count = 0;
  uint64_t bytes = 0;
  check(TRITONBACKEND_InputProperties(input, &name, &result.type, &shape, &dim_count, &bytes, &buffer_count));
  result.samples = shape[0];
  result.row_bytes = bytes / static_cast<size_t>(shape[0]);
  for (uint32_t i = 0; i < buffer_count; i++) {
    const void* data = nullptr;
    uint64_t size = 0;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t id = 0;
    check(TRITONBACKEND_InputBuffer(input, i, &data, &size, &type, &id));
    result.pieces.emplace_back(static_cast<const char*>(data), size);
  }
  return result;
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

// Where calls wait for each other.
class Gate {
 public:
  static Gate& the() {
    static Gate gate;
    return gate;
  }

  // Takes a call in; all of them come out when there are enough.
  std::vector<Call> pass(const Call& call, size_t enough) {
    const std::lock_guard lock(mutex_);
    held_.push_back(call);
    return held_.size() < enough ? std::vector<Call>() : std::exchange(held_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Call> held_;
};

class Member {
 public:
  explicit Member(const std::string& config) {
    const Json json = Json::parse(config);
    const auto parameter = [&](const char* name, const char* otherwise) {
      const Json* parameters = json.find("parameters");
      const Json* found = parameters == nullptr ? nullptr : parameters->find(name);
      return found == nullptr ? std::string(otherwise) : found->at("string_value").string();
    };
    std::istringstream numbers(parameter("answer", ""));
    for (std::string number; std::getline(numbers, number, ',');) answer_.push_back(std::stof(number));
    const Json& output = json.at("output").array().at(0);
    if (answer_.empty()) answer_.resize(static_cast<size_t>(output.at("dims").array().back().number()));
    gain_ = std::stof(parameter("gain", "0"));
    delay_ = std::chrono::microseconds(std::stol(parameter("delay_us", "0")));
    fail_first_ = std::stol(parameter("fail_first", "0"));
    special_ = parameter("special", "");
    gate_ = std::stoul(parameter("gate", "0"));
    tells_address_ = parameter("tell", "") == "address";
    limit_ = std::chrono::microseconds(std::stol(parameter("limit_us", "0")));
    if (special_ == "hold" || limit_.count() > 0) watch_ = std::thread([this] { watch(); });
  }

  ~Member() {
    stopping_ = true;
    if (watch_.joinable()) watch_.join();
  }

  void execute(Call call) {
    if (delay_.count() > 0) std::this_thread::sleep_for(delay_);
    const Input input = input_of(call.request);
    bool special = false, release = false;
    for (int64_t i = 0; i < input.samples && !special_.empty(); i++) {
      special |= input.first_number(i) == kSpecial;
      release |= input.first_number(i) == kRelease;
    }
    std::vector<Call> ended;
    bool fail = special && special_ == "fail";
    {
      const std::lock_guard lock(mutex_);
      fail |= fail_first_ != 0;
      if (fail_first_ > 0) fail_first_--;
      if (gate_ > 0) {
        ended = Gate::the().pass(call, gate_);
      } else if (special && (special_ == "hold" || special_ == "hang")) {
        held_.push_back(call);
      } else {
        ended.push_back(call);
      }
      if (release) {
        ended.insert(ended.end(), held_.begin(), held_.end());
        held_.clear();
      }
    }
    for (const Call& each : ended) each.member->end(each, fail ? "fake failure" : nullptr);
  }

 private:
  // Fails calls on hold that were cancelled, and answers those that were held for long enough.
  void watch() {
    while (!stopping_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      const auto cancelled = take_held([&](const Call& call) {
        bool is_cancelled = false;
        if (special_ == "hold") log_if(TRITONBACKEND_RequestIsCancelled(call.request, &is_cancelled));
        return is_cancelled;
      });
      const auto now = std::chrono::steady_clock::now();
      const auto late = take_held([&](const Call& call) { return limit_.count() > 0 && now - call.since >= limit_; });
      for (const Call& call : cancelled) end(call, "cancelled");
      for (const Call& call : late) end(call, nullptr);
    }
  }

  template <typename Ends>
  std::vector<Call> take_held(Ends ends) {
    const std::lock_guard lock(mutex_);
    const auto first = std::stable_partition(held_.begin(), held_.end(), [&](const Call& call) { return !ends(call); });
    const std::vector<Call> taken(first, held_.end());
    held_.erase(first, held_.end());
    return taken;
  }

  void end(const Call& call, const char* problem) {
    const uint64_t begin = now_ns();
    const Input input = input_of(call.request);
    TRITONBACKEND_Response* response = nullptr;
    check(TRITONBACKEND_ResponseNew(&response, call.request));
    Error error;
    if (problem == nullptr) {
      error.reset(guarded([&] { write(response, input); }));
    } else {
      error.reset(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, problem));
    }
    const uint64_t end = now_ns();
    const bool good = error == nullptr;
    log_if(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error.get()));
    log_if(TRITONBACKEND_ModelInstanceReportStatistics(call.instance, call.request, good, begin, begin, end, end));
    log_if(TRITONBACKEND_ModelInstanceReportBatchStatistics(call.instance, static_cast<uint64_t>(input.samples), begin,
                                                            begin, end, end));
    log_if(TRITONBACKEND_RequestRelease(call.request, TRITONSERVER_REQUEST_RELEASE_ALL));
  }

  void write(TRITONBACKEND_Response* response, const Input& input) const {
    const int64_t shape[] = {input.samples, static_cast<int64_t>(answer_.size())};
    TRITONBACKEND_Output* output = nullptr;
    check(TRITONBACKEND_ResponseOutput(response, &output, "PROBABILITIES", TRITONSERVER_TYPE_FP32, shape, 2));
    void* buffer = nullptr;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t id = 0;
    const size_t count = static_cast<size_t>(input.samples) * answer_.size();
    check(TRITONBACKEND_OutputBuffer(output, &buffer, count * sizeof(float), &type, &id));
    auto* row = static_cast<float*>(buffer);
    for (int64_t i = 0; i < input.samples; i++, row += answer_.size()) {
      std::copy(answer_.begin(), answer_.end(), row);
      if (tells_address_) {
        const auto address = reinterpret_cast<uintptr_t>(input.sample(i));
        row[0] = static_cast<float>(address >> 24);
        row[1] = static_cast<float>(address & 0xFFFFFF);
      } else if (gain_ != 0) {
        const float added = gain_ * input.first_number(i);
        for (size_t k = 0; k < answer_.size(); k++) row[k] += added;
      }
      if (special_ == "nan" && input.first_number(i) == kSpecial) *row = std::numeric_limits<float>::quiet_NaN();
    }
  }

  std::vector<float> answer_;
  float gain_ = 0;
  std::chrono::microseconds delay_{0};
  std::chrono::microseconds limit_{0};
  std::string special_;
  size_t gate_ = 0;
  bool tells_address_ = false;
  std::mutex mutex_;  // of all that follows
  long fail_first_ = 0;
  std::vector<Call> held_;
  std::atomic<bool> stopping_ = false;
  std::thread watch_;
};

Member* member_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelState(model, &state));
  return static_cast<Member*>(state);
}

}  // namespace

extern "C" {

// A sanitizer's library is for the server alone: processes of Python models that are loaded later do not run with it.
FAKE_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  unsetenv("LD_PRELOAD");
  return nullptr;
}

FAKE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    TRITONSERVER_Message* config = nullptr;
    check(TRITONBACKEND_ModelConfig(model, 1, &config));
    auto member = std::make_unique<Member>(json_of(config));
    check(TRITONBACKEND_ModelSetState(model, member.get()));
    static_cast<void>(member.release());
  });
}

FAKE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                  TRITONBACKEND_Request** requests,
                                                                  const uint32_t count) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    for (uint32_t i = 0; i < count; i++) member_of(model)->execute(Call{member_of(model), instance, requests[i]});
  });
}

FAKE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] { const std::unique_ptr<Member> member(member_of(model)); });
}

}  // extern "C"
