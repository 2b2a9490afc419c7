#include "triton/metrics.h"

#include <array>

namespace averaging {

namespace {

using Parameter = Owned<TRITONSERVER_Parameter, TRITONSERVER_ParameterDelete>;

// Labels, in the order of the enumerations.
constexpr std::array kCallEnds{"answered", "not_finite", "invalid", "failed", "late"};
constexpr std::array kRequestEnds{"complete", "partial", "failed", "deadline", "cancelled"};

}  // namespace

Counter::Counter(TRITONSERVER_MetricFamily* family, const Labels& labels) {
  std::vector<Parameter> owned;
  std::vector<const TRITONSERVER_Parameter*> parameters;
  for (const auto& [name, value] : labels) {
    owned.emplace_back(TRITONSERVER_ParameterNew(name.c_str(), TRITONSERVER_PARAMETER_STRING, value.c_str()));
    parameters.push_back(owned.back().get());
  }
  TRITONSERVER_Metric* metric = nullptr;
  check(TRITONSERVER_MetricNew(&metric, family, parameters.data(), parameters.size()));
  metric_.reset(metric);
}

Family::Family(const char* name, const char* description) {
  TRITONSERVER_MetricFamily* family = nullptr;
  check(TRITONSERVER_MetricFamilyNew(&family, TRITONSERVER_METRIC_KIND_COUNTER, name, description));
  family_.reset(family);
}

Metrics::Metrics(const Settings& settings, const std::string& load)
    : wait_time_family_("ensemble_wait_microseconds_total", "Microseconds that requests waited for members"),
      waits_family_("ensemble_wait_requests_total", "Requests that every member has begun with"),
      requests_family_("ensemble_requests_total", "Requests by how they ended"),
      calls_family_("ensemble_calls_total", "Calls of a member's worker by how they ended"),
      samples_family_("ensemble_samples_total", "Samples that a member's worker has answered"),
      copied_family_("ensemble_copied_bytes_total", "Bytes of requests' inputs that had to be copied for members"),
      wait_time_(wait_time_family_.counter({{"model", settings.model}, {"load", load}})),
      waits_(waits_family_.counter({{"model", settings.model}, {"load", load}})),
      copied_bytes_(copied_family_.counter({{"model", settings.model}, {"load", load}})) {
  for (const char* end : kRequestEnds) {
    requests_.push_back(requests_family_.counter({{"model", settings.model}, {"load", load}, {"outcome", end}}));
  }
  for (const Member& member : settings.members) {
    auto& counters = workers_.emplace_back();
    for (const Worker& worker : member.workers) {
      Labels labels{{"model", settings.model}, {"load", load}, {"member", member.name}, {"worker", worker.model}};
      WorkerCounters of_worker{{}, samples_family_.counter(labels)};
      labels.emplace_back("reason", "");
      for (const char* end : kCallEnds) {
        labels.back().second = end;
        of_worker.calls.push_back(calls_family_.counter(labels));
      }
      counters.push_back(std::move(of_worker));
    }
  }
}

void Metrics::call_ended(size_t member, size_t worker, int64_t rows, CallEnd end) {
  const WorkerCounters& counters = workers_[member][worker];
  counters.calls[static_cast<size_t>(end)].add(1);
  if (end == CallEnd::kAnswered) counters.samples.add(static_cast<double>(rows));
}

void Metrics::request_ended(RequestEnd end) { requests_[static_cast<size_t>(end)].add(1); }

void Metrics::waited(std::chrono::steady_clock::duration time) {
  wait_time_.add(static_cast<double>(std::chrono::duration_cast<std::chrono::microseconds>(time).count()));
  waits_.add(1);
}

}  // namespace averaging
