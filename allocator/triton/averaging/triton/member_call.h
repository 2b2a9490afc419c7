// A call of a member's worker in this process: the samples go by pointer, the answer is added where Triton brings it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "core/request.h"
#include "triton/client_request.h"
#include "triton/errors.h"

namespace averaging {

class Model;

// Triton calls back twice, in any order: with the response, and when it does not need the samples any more. The call
// lives until both have happened, and with it the client's request.
class MemberCall : public Call, public std::enable_shared_from_this<MemberCall> {
 public:
  MemberCall(std::shared_ptr<Model> model, size_t member, size_t worker, Chunk chunk);

  void send() override;
  void cancel() override;

  // Of Triton's allocator for responses.
  static TRITONSERVER_Error* allocate(TRITONSERVER_ResponseAllocator* allocator, const char* tensor, size_t bytes,
                                      TRITONSERVER_MemoryType wanted_type, int64_t wanted_id, void* call, void** buffer,
                                      void** buffer_userp, TRITONSERVER_MemoryType* type, int64_t* id) noexcept;
  static TRITONSERVER_Error* release(TRITONSERVER_ResponseAllocator* allocator, void* buffer, void* buffer_userp,
                                     size_t bytes, TRITONSERVER_MemoryType type, int64_t id) noexcept;

 private:
  struct Free {
    void operator()(void* memory) const noexcept { std::free(memory); }
  };
  using InferenceRequest = Owned<TRITONSERVER_InferenceRequest, TRITONSERVER_InferenceRequestDelete>;
  using InferenceResponse = Owned<TRITONSERVER_InferenceResponse, TRITONSERVER_InferenceResponseDelete>;

  static void on_released(TRITONSERVER_InferenceRequest* request, uint32_t flags, void* call) noexcept;
  static void on_response(TRITONSERVER_InferenceResponse* response, uint32_t flags, void* call) noexcept;

  ClientRequest& client() const;
  void add_samples();
  void add_reference();
  void end(TRITONSERVER_InferenceResponse* response);
  const float* numbers_of(TRITONSERVER_InferenceResponse* response) const;
  void check_number(TRITONSERVER_InferenceResponse* response) const;

  const std::shared_ptr<Model> model_;
  const bool by_reference_;
  int64_t reference_[4] = {};  // offset, samples, bytes per sample, number of the call
  int64_t answered_ = 0;       // the number that the answer has
  std::mutex mutex_;           // of the request, which may be cancelled while it is released
  InferenceRequest request_;
  bool ended_ = false;  // the engine knows
  std::unique_ptr<void, Free> answer_;
  // What Triton holds through its two callbacks.
  std::shared_ptr<MemberCall> until_response_, until_released_;
};

}  // namespace averaging
