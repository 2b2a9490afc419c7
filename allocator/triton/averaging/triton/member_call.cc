#include "triton/member_call.h"

#include <atomic>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "triton/model.h"

namespace averaging {

namespace {

constexpr const char* kInput = "INPUT";
constexpr const char* kReference = "SEG";
constexpr const char* kOutput = "PROBABILITIES";
constexpr const char* kNumber = "CALL";
constexpr int64_t kAnyVersion = -1;

// An answer that cannot be added.
class InvalidAnswer : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// No two calls have the same, also of processes and loads before this one.
int64_t new_number() {
  static std::atomic<int64_t> next{std::chrono::system_clock::now().time_since_epoch() / std::chrono::nanoseconds(1)};
  return next++;
}

struct Output {
  TRITONSERVER_DataType type{};
  const int64_t* shape = nullptr;
  uint64_t dim_count = 0;
  const void* base = nullptr;
  size_t bytes = 0;
  TRITONSERVER_MemoryType memory_type{};
};

std::optional<Output> output_of(TRITONSERVER_InferenceResponse* response, std::string_view wanted) {
  uint32_t count = 0;
  check(TRITONSERVER_InferenceResponseOutputCount(response, &count));
  for (uint32_t i = 0; i < count; i++) {
    Output found;
    const char* name = nullptr;
    int64_t memory_id = 0;
    void* userp = nullptr;
    check(TRITONSERVER_InferenceResponseOutput(response, i, &name, &found.type, &found.shape, &found.dim_count,
                                               &found.base, &found.bytes, &found.memory_type, &memory_id, &userp));
    if (name == wanted) return found;
  }
  return std::nullopt;
}

}  // namespace

MemberCall::MemberCall(std::shared_ptr<Model> model, size_t member, size_t worker, Chunk chunk)
    : Call(member, worker, std::move(chunk)),
      model_(std::move(model)),
      by_reference_(model_->settings().members[member].workers[worker].by_reference) {
  const Worker& asked = model_->settings().members[member].workers[worker];
  TRITONSERVER_InferenceRequest* request = nullptr;
  check(TRITONSERVER_InferenceRequestNew(&request, model_->server(), asked.model.c_str(), kAnyVersion));
  request_.reset(request);
  if (by_reference_) {
    add_reference();
  } else {
    add_samples();
  }
  check(TRITONSERVER_InferenceRequestAddRequestedOutput(request, kOutput));
  check(TRITONSERVER_InferenceRequestSetReleaseCallback(request, on_released, this));
  check(TRITONSERVER_InferenceRequestSetResponseCallback(request, model_->allocator(), this, on_response, this));
}

void MemberCall::send() {
  until_response_ = until_released_ = shared_from_this();
  // The answer may come before this returns, and both callbacks may have been made.
  if (const Error error{TRITONSERVER_ServerInferAsync(model_->server(), request_.get(), nullptr)}) {
    const auto alive = std::exchange(until_response_, nullptr);  // no callback will come
    until_released_ = nullptr;
    throw std::runtime_error(TRITONSERVER_ErrorMessage(error.get()));
  }
}

void MemberCall::cancel() {
  const std::lock_guard lock(mutex_);
  if (request_ != nullptr) log_if(TRITONSERVER_InferenceRequestCancel(request_.get()));
}

TRITONSERVER_Error* MemberCall::allocate(TRITONSERVER_ResponseAllocator*, const char* tensor, size_t bytes,
                                         TRITONSERVER_MemoryType, int64_t, void* call, void** buffer, void** buffer_userp,
                                         TRITONSERVER_MemoryType* type, int64_t* id) noexcept {
  auto* self = static_cast<MemberCall*>(call);
  *buffer_userp = nullptr;
  *type = TRITONSERVER_MEMORY_CPU;  // whatever was asked for: it is added up here
  *id = 0;
  if (std::string_view(tensor) == kNumber && bytes == sizeof self->answered_) {
    *buffer = &self->answered_;
    return nullptr;
  }
  self->answer_.reset(bytes == 0 ? nullptr : std::malloc(bytes));
  *buffer = self->answer_.get();
  if (bytes > 0 && self->answer_ == nullptr) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, "averaging: no memory for an answer");
  }
  return nullptr;
}

TRITONSERVER_Error* MemberCall::release(TRITONSERVER_ResponseAllocator*, void*, void*, size_t, TRITONSERVER_MemoryType,
                                        int64_t) noexcept {
  return nullptr;  // the call has it
}

void MemberCall::on_released(TRITONSERVER_InferenceRequest*, uint32_t flags, void* call) noexcept {
  if ((flags & TRITONSERVER_REQUEST_RELEASE_ALL) == 0) return;
  auto* self = static_cast<MemberCall*>(call);
  const auto alive = std::move(self->until_released_);
  const std::lock_guard lock(self->mutex_);
  self->request_.reset();
}

void MemberCall::on_response(TRITONSERVER_InferenceResponse* given, uint32_t flags, void* call) noexcept {
  auto* self = static_cast<MemberCall*>(call);
  const bool final = (flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL) != 0;
  const auto alive = final ? std::move(self->until_response_) : self->shared_from_this();
  const InferenceResponse response(given);  // goes before the call, whose memory it shows
  log_if(guarded([&] { self->end(given); }));
}

ClientRequest& MemberCall::client() const {
  // Every request of this engine is one of Triton's.
  return static_cast<ClientRequest&>(chunk().request->client());
}

void MemberCall::add_samples() {
  const std::vector<int64_t> shape = client().shape_of(chunk().rows);
  check(TRITONSERVER_InferenceRequestAddInput(request_.get(), kInput, client().type(), shape.data(), shape.size()));
  for (const Piece& piece : client().pieces_of(chunk().rows)) {
    check(TRITONSERVER_InferenceRequestAppendInputData(request_.get(), kInput, piece.data, piece.bytes,
                                                       piece.memory_type, piece.memory_id));
  }
}

void MemberCall::add_reference() {
  const Place& place = client().place();
  const auto row_bytes = static_cast<int64_t>(client().row_bytes());
  reference_[0] = static_cast<int64_t>(place.offset) + chunk().rows.begin * row_bytes;
  reference_[1] = chunk().rows.count();
  reference_[2] = row_bytes;
  reference_[3] = new_number();
  constexpr int64_t kShape[] = {4};
  check(TRITONSERVER_InferenceRequestAddInput(request_.get(), kReference, TRITONSERVER_TYPE_INT64, kShape, 1));
  check(TRITONSERVER_InferenceRequestAppendInputData(request_.get(), kReference, reference_, sizeof reference_,
                                                     TRITONSERVER_MEMORY_CPU, 0));
  check(TRITONSERVER_InferenceRequestSetStringParameter(request_.get(), "shm_key", place.key.c_str()));
  check(TRITONSERVER_InferenceRequestAddRequestedOutput(request_.get(), kNumber));
}

void MemberCall::end(TRITONSERVER_InferenceResponse* response) {
  if (std::exchange(ended_, true)) return;  // a second, empty one only says that there are no more
  Engine& engine = model_->engine();
  if (response == nullptr) return engine.failed(*this, CallEnd::kFailed, "it gave no answer");
  if (TRITONSERVER_Error* error = TRITONSERVER_InferenceResponseError(response)) {  // the response's own
    return engine.failed(*this, CallEnd::kFailed, TRITONSERVER_ErrorMessage(error));
  }
  const float* numbers = nullptr;
  try {
    if (by_reference_) check_number(response);
    numbers = numbers_of(response);
  } catch (const std::exception& error) {
    return engine.failed(*this, CallEnd::kInvalid, error.what());
  }
  engine.answered(*this, numbers);
}

// A member's process that was not let work for a second is taken for dead while it is called, and Triton then may give
// its late answer to a later call.
void MemberCall::check_number(TRITONSERVER_InferenceResponse* response) const {
  const auto number = output_of(response, kNumber);
  if (!number || number->type != TRITONSERVER_TYPE_INT64 || number->base != &answered_) {
    throw InvalidAnswer(std::string("the answer has no ") + kNumber);
  }
  if (answered_ != reference_[3]) throw InvalidAnswer("the answer is that of another call");
}

const float* MemberCall::numbers_of(TRITONSERVER_InferenceResponse* response) const {
  const auto answer = output_of(response, kOutput);
  if (!answer) throw InvalidAnswer(std::string("the answer has no ") + kOutput);
  std::vector<int64_t> wanted{chunk().rows.count()};
  const auto& rest = model_->settings().shape;
  wanted.insert(wanted.end(), rest.begin(), rest.end());
  const std::vector<int64_t> shape(answer->shape, answer->shape + answer->dim_count);
  if (shape != wanted) {
    throw InvalidAnswer("the answer has shape " + text_of(shape) + ", not " + text_of(wanted));
  }
  if (answer->type != TRITONSERVER_TYPE_FP32) throw InvalidAnswer("the answer is not FP32");
  if (answer->memory_type == TRITONSERVER_MEMORY_GPU) throw InvalidAnswer("the answer is not in the host's memory");
  return static_cast<const float*>(answer->base);
}

}  // namespace averaging
