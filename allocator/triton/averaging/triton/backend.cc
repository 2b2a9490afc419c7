// What Triton calls. No exception passes from here, and no wait is in here: a request is only issued.
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "triton/errors.h"
#include "triton/model.h"

#define AVERAGING_EXPORT __attribute__((visibility("default")))

namespace {

using averaging::check;
using averaging::guarded;
using averaging::Model;

constexpr uint32_t kApiMajor = 1;
constexpr uint32_t kApiMinor = 19;  // the oldest that this has run with

// What Triton keeps for a model.
std::shared_ptr<Model>* state_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelState(model, &state));
  return static_cast<std::shared_ptr<Model>*>(state);
}

}  // namespace

extern "C" {

AVERAGING_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return guarded([] {
    uint32_t major = 0, minor = 0;
    check(TRITONBACKEND_ApiVersion(&major, &minor));
    if (major != kApiMajor || minor < kApiMinor) {
      throw std::runtime_error("the server's backend API is " + std::to_string(major) + "." + std::to_string(minor) +
                               "; 1.19 or a later 1.x is needed");
    }
  });
}

AVERAGING_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    auto state = std::make_unique<std::shared_ptr<Model>>(std::make_shared<Model>(model));
    check(TRITONBACKEND_ModelSetState(model, state.get()));
    static_cast<void>(state.release());  // Triton's, until it finalizes the model
  });
}

AVERAGING_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                       TRITONBACKEND_Request** requests,
                                                                       const uint32_t count) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    const std::shared_ptr<Model> state = *state_of(model);
    for (uint32_t i = 0; i < count; i++) state->submit(instance, requests[i]);
  });
}

AVERAGING_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    const std::unique_ptr<std::shared_ptr<Model>> state(state_of(model));
    if (state != nullptr) (*state)->engine().stop();
  });
}

}  // extern "C"
