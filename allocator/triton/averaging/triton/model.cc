#include "triton/model.h"

#include <atomic>
#include <exception>
#include <utility>

#include "core/json.h"
#include "triton/client_request.h"
#include "triton/member_call.h"

namespace averaging {

namespace {

constexpr uint32_t kConfigVersion = 1;

TRITONSERVER_Server* server_of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Server* server = nullptr;
  check(TRITONBACKEND_ModelServer(model, &server));
  return server;
}

Settings settings_of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* config = nullptr;
  check(TRITONBACKEND_ModelConfig(model, kConfigVersion, &config));
  return Settings::parse(json_of(config));
}

// Tells loads of models apart: while a model is loaded again, the server has it twice.
std::string new_load() {
  static std::atomic<unsigned> loads{0};
  return std::to_string(loads++);
}

// The server's name begins the names of its shared memory.
std::string region_prefix(TRITONSERVER_Server* server, const std::string& load) {
  TRITONSERVER_Message* metadata = nullptr;
  check(TRITONSERVER_ServerMetadata(server, &metadata));
  return Json::parse(json_of(metadata)).at("name").string() + "averaging-" + load + "-";
}

// Sends an error as the response to a request that was not taken over, and gives it back.
void refuse(TRITONBACKEND_Request* request, const Error& error) noexcept {
  TRITONBACKEND_Response* response = nullptr;
  log_if(TRITONBACKEND_ResponseNew(&response, request));
  if (response != nullptr) {
    log_if(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error.get()));
  }
  log_if(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace

Model::Model(TRITONBACKEND_Model* model) : Model(model, server_of(model), new_load()) {}

Model::Model(TRITONBACKEND_Model* model, TRITONSERVER_Server* server, const std::string& load)
    : server_(server),
      settings_(settings_of(model)),
      regions_(region_prefix(server, load)),
      metrics_(settings_, load),
      engine_(settings_, *this, metrics_) {
  TRITONSERVER_ResponseAllocator* allocator = nullptr;
  check(TRITONSERVER_ResponseAllocatorNew(&allocator, MemberCall::allocate, MemberCall::release, nullptr));
  allocator_.reset(allocator);
}

void Model::submit(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept {
  std::unique_ptr<ClientRequest> client;
  const Error problem{guarded([&] {
    client = std::make_unique<ClientRequest>(ClientRequest::Context{settings_, regions_, metrics_}, instance, request);
  })};
  if (problem != nullptr) return refuse(request, problem);
  log_if(guarded([&] { engine_.submit(std::move(client)); }));
}

std::shared_ptr<Call> Model::prepare(size_t member, size_t worker, Chunk chunk) {
  return std::make_shared<MemberCall>(shared_from_this(), member, worker, std::move(chunk));
}

}  // namespace averaging
