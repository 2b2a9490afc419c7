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

class Counter {
 public:
  Counter(TRITONSERVER_MetricFamily* family, const Labels& labels);

  void add(double value) const { log_if(TRITONSERVER_MetricIncrement(metric_.get(), value)); }

 private:
  Owned<TRITONSERVER_Metric, TRITONSERVER_MetricDelete> metric_;
};

using Gauge = Counter;  // to which less than 0 may be added, too

// Counters, or gauges, of one name, which differ in their labels.
class Family {
 public:
  Family(const char* name, const char* description, TRITONSERVER_MetricKind kind = TRITONSERVER_METRIC_KIND_COUNTER);

  Counter counter(const Labels& labels) const { return {family_.get(), labels}; }

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
  struct WorkerCounters {
    std::vector<Counter> calls;  // by how they ended
    Counter samples;             // of answers that count
    Gauge queued, asked;
  };

  // Families before their counters: these must go first.
  const Family wait_time_family_, waits_family_, requests_family_, calls_family_, samples_family_, copied_family_;
  const Family received_family_, answered_samples_family_, latency_family_, latencies_family_;
  const Family queued_family_, asked_family_;
  const Counter wait_time_, waits_, copied_bytes_, received_, answered_samples_, latency_;
  std::vector<Counter> requests_;                     // by how they ended
  std::vector<Counter> latencies_;                    // requests by how long they took
  std::vector<std::vector<WorkerCounters>> workers_;  // of each member
  std::vector<Gauge> queued_;                         // for whichever worker of each member is free first
};

}  // namespace averaging
