#include "triton/client_request.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string_view>

namespace averaging {

namespace {

constexpr const char* kOutput = "PROBABILITIES";
constexpr const char* kAnswered = "ANSWERED";
constexpr const char* kDisagreement = "DISAGREEMENT";

uint64_t now_ns() {
  const auto since_start = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since_start).count());
}

}  // namespace

ClientRequest::ClientRequest(const Context& context, TRITONBACKEND_ModelInstance* instance,
                             TRITONBACKEND_Request* request)
    : context_(context), instance_(instance), request_(request), since_(now_ns()) {
  read_input();
  read_wanted_outputs();
  if (context.settings.any_by_reference()) share_input();
  TRITONBACKEND_Response* response = nullptr;
  check(TRITONBACKEND_ResponseNew(&response, request));
  response_.reset(response);
  std::vector<int64_t> shape{rows()};
  shape.insert(shape.end(), context.settings.shape.begin(), context.settings.shape.end());
  const size_t bytes = static_cast<size_t>(rows()) * context.settings.width() * sizeof(float);
  sums_ = static_cast<float*>(add_output(kOutput, TRITONSERVER_TYPE_FP32, shape, bytes));
}

ClientRequest::~ClientRequest() {
  if (response_ != nullptr) {  // nobody could bring it to an end
    log_if(guarded([&] { refuse(Refusal::kUnavailable, "the request was given up"); }));
  }
  if (region_ != nullptr) context_.regions.give_back(std::move(region_));
  log_if(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL));
}

void ClientRequest::read_input() {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(request_, 0, &input));
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint32_t dim_count = 0, buffer_count = 0;
  uint64_t bytes = 0;
  check(TRITONBACKEND_InputProperties(input, &name, &type_, &shape, &dim_count, &bytes, &buffer_count));
  shape_.assign(shape, shape + dim_count);
  // Triton passes on, without its first dimension, what it takes for 0 samples: it counts them in 32 bits.
  const auto& sample = context_.settings.sample;
  if (shape_.size() != sample.size() + 1 || !std::equal(sample.begin(), sample.end(), shape_.begin() + 1)) {
    throw std::invalid_argument("a request needs at least one sample of shape " + text_of(sample) +
                                ", and no more than can be counted");
  }
  if (shape_.front() < 1) throw std::invalid_argument("a request needs at least one sample");
  row_bytes_ = std::accumulate(sample.begin(), sample.end(), size_t{TRITONSERVER_DataTypeByteSize(type_)},
                               [](size_t size, int64_t more) { return size * static_cast<size_t>(more); });
  if (bytes != row_bytes_ * static_cast<size_t>(rows())) {
    throw std::invalid_argument("a request of shape " + text_of(shape_) + " has " + std::to_string(bytes) + " bytes");
  }
  for (uint32_t i = 0; i < buffer_count; i++) {
    const void* data = nullptr;
    Piece piece{nullptr, 0, TRITONSERVER_MEMORY_CPU, 0};
    uint64_t size = 0;
    check(TRITONBACKEND_InputBuffer(input, i, &data, &size, &piece.memory_type, &piece.memory_id));
    piece.data = static_cast<const char*>(data);
    piece.bytes = size;
    pieces_.push_back(piece);
  }
}

void ClientRequest::read_wanted_outputs() {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request_, &count));
  for (uint32_t i = 0; i < count; i++) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request_, i, &name));
    wants_answered_ |= std::string_view(name) == kAnswered;
    wants_disagreement_ |= std::string_view(name) == kDisagreement;
  }
}

void* ClientRequest::add_output(const char* name, TRITONSERVER_DataType type, const std::vector<int64_t>& shape,
                                size_t bytes) {
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response_.get(), &output, name, type, shape.data(),
                                     static_cast<uint32_t>(shape.size())));
  void* buffer = nullptr;
  TRITONSERVER_MemoryType memory_type = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory_type, &memory_id));
  if (memory_type == TRITONSERVER_MEMORY_GPU) throw std::runtime_error("outputs must be in the host's memory");
  return buffer;
}

// Members in other processes cannot see this one's memory: what is in no shared memory is copied there, once for all.
void ClientRequest::share_input() {
  if (pieces_.size() == 1) {
    if (auto place = find_in_shared_memory(pieces_[0].data, pieces_[0].bytes)) {
      place_ = std::move(*place);
      return;
    }
  }
  const size_t bytes = row_bytes_ * static_cast<size_t>(rows());
  region_ = context_.regions.borrow(bytes);
  char* to = region_->data();
  for (const Piece& piece : pieces_) {
    if (piece.memory_type == TRITONSERVER_MEMORY_GPU) throw std::runtime_error("inputs must be in the host's memory");
    std::memcpy(to, piece.data, piece.bytes);
    to += piece.bytes;
  }
  context_.metrics.copied(bytes);
  place_ = {region_->key(), 0};
}

std::vector<int64_t> ClientRequest::shape_of(Rows rows) const {
  std::vector<int64_t> shape = shape_;
  shape.front() = rows.count();
  return shape;
}

std::vector<Piece> ClientRequest::pieces_of(Rows rows) const {
  std::vector<Piece> found;
  const size_t first = static_cast<size_t>(rows.begin) * row_bytes_;
  const size_t last = static_cast<size_t>(rows.end) * row_bytes_;
  size_t at = 0;
  for (const Piece& piece : pieces_) {
    const size_t begin = std::max(first, at);
    const size_t end = std::min(last, at + piece.bytes);
    if (begin < end) found.push_back({piece.data + (begin - at), end - begin, piece.memory_type, piece.memory_id});
    at += piece.bytes;
  }
  return found;
}

bool ClientRequest::cancelled() const {
  bool cancelled = false;
  log_if(TRITONBACKEND_RequestIsCancelled(request_, &cancelled));
  return cancelled;
}

void ClientRequest::answer(const Combiner& sums) {
  Error problem{guarded([&] {
    std::string names;
    const auto& members = context_.settings.members;
    for (size_t member = 0; member < members.size(); member++) {
      if (sums.answered_all(member)) names += (names.empty() ? "" : ",") + members[member].name;
    }
    check(TRITONBACKEND_ResponseSetStringParameter(response_.get(), "answered", names.c_str()));
    if (wants_answered_) {
      const auto& answered = sums.answered();
      const std::vector<int64_t> shape{rows(), static_cast<int64_t>(members.size())};
      std::memcpy(add_output(kAnswered, TRITONSERVER_TYPE_BOOL, shape, answered.size()), answered.data(),
                  answered.size());
    }
    if (wants_disagreement_) {
      const auto disagreement = sums.disagreement();
      const size_t bytes = disagreement.size() * sizeof(float);
      std::memcpy(add_output(kDisagreement, TRITONSERVER_TYPE_FP32, {rows(), 1}, bytes), disagreement.data(), bytes);
    }
  })};
  send(std::move(problem));
}

void ClientRequest::refuse(Refusal refusal, const std::string& message) {
  const bool cancelled = refusal == Refusal::kCancelled;
  send(new_error(cancelled ? TRITONSERVER_ERROR_CANCELLED : TRITONSERVER_ERROR_UNAVAILABLE, message));
}

void ClientRequest::send(Error error) noexcept {
  const uint64_t end = now_ns();
  log_if(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, error == nullptr, since_, since_, end, end));
  log_if(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, static_cast<uint64_t>(rows()), since_, since_, end,
                                                          end));
  log_if(TRITONBACKEND_ResponseSend(response_.release(), TRITONSERVER_RESPONSE_COMPLETE_FINAL, error.get()));
}

}  // namespace averaging
