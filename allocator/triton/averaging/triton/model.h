// A loaded front model.
#pragma once

#include <memory>
#include <string>

#include "core/engine.h"
#include "core/settings.h"
#include "triton/errors.h"
#include "triton/metrics.h"
#include "triton/shared_memory.h"

namespace averaging {

// Calls hold it too: the last one may still be on its way out when Triton unloads the model.
class Model : public Transport, public std::enable_shared_from_this<Model> {
 public:
  explicit Model(TRITONBACKEND_Model* model);

  // Takes requests over, each of which gets an answer or an error.
  void submit(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept;

  std::shared_ptr<Call> prepare(size_t member, size_t worker, Chunk chunk) override;

  const Settings& settings() const { return settings_; }
  Engine& engine() { return engine_; }
  TRITONSERVER_Server* server() const { return server_; }
  TRITONSERVER_ResponseAllocator* allocator() const { return allocator_.get(); }

 private:
  Model(TRITONBACKEND_Model* model, TRITONSERVER_Server* server, const std::string& load);

  TRITONSERVER_Server* const server_;
  const Settings settings_;
  Owned<TRITONSERVER_ResponseAllocator, TRITONSERVER_ResponseAllocatorDelete> allocator_;
  Regions regions_;
  Metrics metrics_;
  Engine engine_;  // ends first
};

}  // namespace averaging
