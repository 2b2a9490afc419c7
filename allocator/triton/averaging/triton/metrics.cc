#include "triton/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace averaging {

namespace {

using Parameter = Owned<TRITONSERVER_Parameter, TRITONSERVER_ParameterDelete>;

// Labels, in the order of the enumerations.
constexpr std::array kCallEnds{"answered", "not_finite", "invalid", "failed", "late"};
constexpr std::array kRequestEnds{"complete", "partial", "failed", "deadline", "cancelled"};

// Latencies are counted by the power of ten that they are below, five to a decade: 10^-4 s, 10^-3.8 s, …, 10^2 s, and what
// takes longer.
constexpr double kSteps = 5;
constexpr int kFirst = -20, kLast = 10;

size_t step_of(double seconds) {
  if (seconds <= 0) return 0;
  const double step = std::floor(std::log10(seconds) * kSteps) + 1;
  return static_cast<size_t>(std::clamp(step, double{kFirst}, double{kLast + 1}) - kFirst);
}

std::string label_of(int step) {
  if (step > kLast) return "+Inf";
  char text[32];
  std::snprintf(text, sizeof text, "%.6f", std::pow(10, step / kSteps));
  return text;
}

double microseconds(std::chrono::steady_clock::duration time) {
  return static_cast<double>(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

}  // namespace

Metric::Metric(TRITONSERVER_MetricFamily* family, const Labels& labels) {
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

Family::Family(const char* name, const char* description, TRITONSERVER_MetricKind kind) {
  TRITONSERVER_MetricFamily* family = nullptr;
  check(TRITONSERVER_MetricFamilyNew(&family, kind, name, description));
  family_.reset(family);
}

Metrics::Metrics(const Settings& settings, const std::string& load)
    : wait_time_family_("ensemble_wait_microseconds_total", "Microseconds that requests waited for members"),
      waits_family_("ensemble_wait_requests_total", "Requests that every member has begun with"),
      requests_family_("ensemble_requests_total", "Requests by how they ended"),
      calls_family_("ensemble_calls_total", "Calls of a member's worker by how they ended"),
      samples_family_("ensemble_samples_total", "Samples that a member's worker has answered"),
      copied_family_("ensemble_copied_bytes_total", "Bytes of requests' inputs that had to be copied for members"),
      received_family_("ensemble_received_requests_total", "Requests that have come, of which some are in flight"),
      answered_samples_family_("ensemble_answered_samples_total", "Samples of requests that were answered"),
      latency_family_("ensemble_latency_microseconds_total", "Microseconds that requests took, however they ended"),
      latencies_family_("ensemble_latency_requests_total", "Requests that took less, and not less than the step before"),
      queued_family_("ensemble_queued_samples", "Samples that wait for a worker alone, or for whichever is free first",
                     TRITONSERVER_METRIC_KIND_GAUGE),
      asked_family_("ensemble_asked_samples", "Samples in calls of a member's worker that have not ended",
                    TRITONSERVER_METRIC_KIND_GAUGE),
      wait_time_(wait_time_family_.metric({{"model", settings.model}, {"load", load}})),
      waits_(waits_family_.metric({{"model", settings.model}, {"load", load}})),
      copied_bytes_(copied_family_.metric({{"model", settings.model}, {"load", load}})),
      received_(received_family_.metric({{"model", settings.model}, {"load", load}})),
      answered_samples_(answered_samples_family_.metric({{"model", settings.model}, {"load", load}})),
      latency_(latency_family_.metric({{"model", settings.model}, {"load", load}})) {
  for (int step = kFirst; step <= kLast + 1; step++) {
    latencies_.push_back(
        latencies_family_.metric({{"model", settings.model}, {"load", load}, {"below_seconds", label_of(step)}}));
  }
  for (const char* end : kRequestEnds) {
    requests_.push_back(requests_family_.metric({{"model", settings.model}, {"load", load}, {"outcome", end}}));
  }
  for (const Member& member : settings.members) {
    queued_.push_back(queued_family_.metric({{"model", settings.model}, {"load", load}, {"member", member.name}}));
    auto& metrics = workers_.emplace_back();
    for (const Worker& worker : member.workers) {
      Labels labels{{"model", settings.model}, {"load", load}, {"member", member.name}, {"worker", worker.model}};
      WorkerMetrics of_worker{{}, samples_family_.metric(labels), queued_family_.metric(labels),
                               asked_family_.metric(labels)};
      labels.emplace_back("reason", "");
      for (const char* end : kCallEnds) {
        labels.back().second = end;
        of_worker.calls.push_back(calls_family_.metric(labels));
      }
      metrics.push_back(std::move(of_worker));
    }
  }
}

void Metrics::queued(size_t member, std::optional<size_t> worker, int64_t change) {
  (worker ? workers_[member][*worker].queued : queued_[member]).add(static_cast<double>(change));
}

void Metrics::call_began(size_t member, size_t worker, int64_t rows) {
  workers_[member][worker].asked.add(static_cast<double>(rows));
}

void Metrics::call_ended(size_t member, size_t worker, int64_t rows, CallEnd end) {
  const WorkerMetrics& metrics = workers_[member][worker];
  metrics.asked.add(-static_cast<double>(rows));
  metrics.calls[static_cast<size_t>(end)].add(1);
  if (end == CallEnd::kAnswered) metrics.samples.add(static_cast<double>(rows));
}

void Metrics::request_ended(RequestEnd end, int64_t rows, std::chrono::steady_clock::duration time) {
  requests_[static_cast<size_t>(end)].add(1);
  if (end == RequestEnd::kComplete || end == RequestEnd::kPartial) answered_samples_.add(static_cast<double>(rows));
  latency_.add(microseconds(time));
  latencies_[step_of(std::chrono::duration<double>(time).count())].add(1);
}

void Metrics::waited(std::chrono::steady_clock::duration time) {
  wait_time_.add(microseconds(time));
  waits_.add(1);
}

}  // namespace averaging
