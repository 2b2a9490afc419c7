// What happens, counted at Triton's metrics endpoint.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/engine.h"
#include "core/settings.h"
#include "triton/errors.h"

namespace averaging {

using Labels = std::vector<std::pair<std::string, std::string>>;

// A counter, or a gauge, to which less than 0 may be added, too.
class Metric {
 public:
  Metric(TRITONSERVER_MetricFamily* family, const Labels& labels);

  void add(double value) const { log_if(TRITONSERVER_MetricIncrement(metric_.get(), value)); }

 private:
  Owned<TRITONSERVER_Metric, TRITONSERVER_MetricDelete> metric_;
};

// Metrics of one name, which differ in their labels.
class Family {
 public:
  Family(const char* name, const char* description, TRITONSERVER_MetricKind kind = TRITONSERVER_METRIC_KIND_COUNTER);

  Metric metric(const Labels& labels) const { return {family_.get(), labels}; }

 private:
  Owned<TRITONSERVER_MetricFamily, TRITONSERVER_MetricFamilyDelete> family_;
};

class Metrics : public Meter {
 public:
  // `load` tells this load of the model from others: Triton would take a counter that two of them share from the second
  // when the first is unloaded.
  Metrics(const Settings& settings, const std::string& load);

  void queued(size_t member, std::optional<size_t> worker, int64_t change) override;
  void call_began(size_t member, size_t worker, int64_t rows) override;
  void call_ended(size_t member, size_t worker, int64_t rows, CallEnd end) override;
  void request_came() override { received_.add(1); }
  void request_ended(RequestEnd end, int64_t rows, std::chrono::steady_clock::duration time) override;
  void waited(std::chrono::steady_clock::duration time) override;
  // Bytes of a request's input that had to be copied.
  void copied(size_t bytes) { copied_bytes_.add(static_cast<double>(bytes)); }

 private:
  struct WorkerMetrics {
    std::vector<Metric> calls;  // by how they ended
    Metric samples;             // of answers that count
    Metric queued, asked;
  };

  // Families before their metrics: these must go first.
  const Family wait_time_family_, waits_family_, requests_family_, calls_family_, samples_family_, copied_family_;
  const Family received_family_, answered_samples_family_, latency_family_, latencies_family_;
  const Family queued_family_, asked_family_;
  const Metric wait_time_, waits_, copied_bytes_, received_, answered_samples_, latency_;
  std::vector<Metric> requests_;                     // by how they ended
  std::vector<Metric> latencies_;                    // requests by how long they took
  std::vector<std::vector<WorkerMetrics>> workers_;  // of each member
  std::vector<Metric> queued_;                        // for whichever worker of each member is free first
};

}  // namespace averaging
