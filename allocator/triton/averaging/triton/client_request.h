// A request as Triton hands it over: its samples, and the response to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/request.h"
#include "core/settings.h"
#include "triton/errors.h"
#include "triton/metrics.h"
#include "triton/shared_memory.h"

namespace averaging {

// A piece of the samples where Triton has them: over HTTP and gRPC there may be several.
struct Piece {
  const char* data;
  size_t bytes;
  TRITONSERVER_MemoryType memory_type;
  int64_t memory_id;
};

class ClientRequest : public Client {
 public:
  // What all requests of a model share, and which outlives them.
  struct Context {
    const Settings& settings;
    Regions& regions;
    Metrics& metrics;
  };

  // Takes the request over, and gives it back to Triton at its own end: the samples stay where they are until then.
  // If it throws, the request is still the caller's, and there was no response.
  ClientRequest(const Context& context, TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request);
  ~ClientRequest() override;

  int64_t rows() const override { return shape_.front(); }
  float* sums() override { return sums_; }
  bool wants_disagreement() const override { return wants_disagreement_; }
  bool cancelled() const override;
  void answer(const Combiner& sums) override;
  void refuse(Refusal refusal, const std::string& message) override;

  TRITONSERVER_DataType type() const { return type_; }
  // Of some rows of the input.
  std::vector<int64_t> shape_of(Rows rows) const;
  std::vector<Piece> pieces_of(Rows rows) const;
  size_t row_bytes() const { return row_bytes_; }
  // Where the samples lie in shared memory; members in other processes read them there.
  const Place& place() const { return place_; }

 private:
  using Response = Owned<TRITONBACKEND_Response, TRITONBACKEND_ResponseDelete>;

  void read_input();
  void read_wanted_outputs();
  void* add_output(const char* name, TRITONSERVER_DataType type, const std::vector<int64_t>& shape, size_t bytes);
  void share_input();
  void send(Error error) noexcept;

  const Context context_;
  TRITONBACKEND_ModelInstance* const instance_;
  TRITONBACKEND_Request* const request_;
  const uint64_t since_;  // in nanoseconds, as Triton's statistics count them
  TRITONSERVER_DataType type_{};
  std::vector<int64_t> shape_;
  size_t row_bytes_ = 0;
  std::vector<Piece> pieces_;
  Place place_;
  std::unique_ptr<Region> region_;  // with a copy of the samples, if they were in no shared memory
  bool wants_answered_ = false, wants_disagreement_ = false;
  Response response_;
  float* sums_ = nullptr;
};

}  // namespace averaging
