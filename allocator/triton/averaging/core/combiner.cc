#include "core/combiner.h"

#include <algorithm>

#include "core/rules.h"

namespace averaging {

Combiner::Combiner(const Settings& settings, int64_t rows, float* sums, bool disagreement)
    : settings_(settings),
      rows_(rows),
      members_(settings.members.size()),
      width_(settings.width()),
      sums_(sums),
      answered_(static_cast<size_t>(rows) * members_),
      entropies_(disagreement ? static_cast<size_t>(rows) : 0),
      counts_(static_cast<size_t>(rows)) {}

Combiner::Added Combiner::add(size_t member, Rows rows, const float* answer) {
  const std::shared_lock open(gate_);
  if (closed_) return {false, {}};
  Added result{true, {}};
  Adder adder(settings_);
  const auto weight = static_cast<float>(settings_.members[member].weight);
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t stripe = row / kStripe;
    const std::lock_guard lock(stripes_[static_cast<size_t>(stripe) % stripes_.size()]);
    for (const int64_t end = std::min(rows.end, (stripe + 1) * kStripe); row < end; row++, answer += width_) {
      if (!finite(answer, width_)) {
        result.lost.push_back(row);
        continue;
      }
      const auto index = static_cast<size_t>(row);
      adder.add(sums_ + index * width_, answer, weight, counts_[index]++ == 0);
      if (!entropies_.empty()) entropies_[index] += settings_.members[member].weight * adder.entropy_of(answer);
      answered_[index * members_ + member] = 1;
    }
  }
  return result;
}

void Combiner::close() {
  const std::unique_lock nobody_adds(gate_);
  closed_ = true;
}

size_t Combiner::fewest() const { return *std::min_element(counts_.begin(), counts_.end()); }

void Combiner::normalise() {
  for (size_t row = 0; row < counts_.size(); row++) {
    if (counts_[row] == members_) continue;
    double weight = 0;
    for (size_t member = 0; member < members_; member++) {
      if (answered_[row * members_ + member] != 0) weight += settings_.members[member].weight;
    }
    scale(sums_ + row * width_, width_, static_cast<float>(1 / weight));
    if (!entropies_.empty()) entropies_[row] /= weight;
  }
}

std::vector<float> Combiner::disagreement() const {
  const auto places = static_cast<double>(width_ / settings_.classes());
  std::vector<float> result(entropies_.size());
  for (size_t row = 0; row < result.size(); row++) {
    const double of_average = entropy(sums_ + row * width_, width_) / places;
    result[row] = static_cast<float>(std::max(0.0, of_average - entropies_[row]));  // below 0 only by rounding
  }
  return result;
}

bool Combiner::answered_all(size_t member) const {
  for (size_t row = 0; row < static_cast<size_t>(rows_); row++) {
    if (answered_[row * members_ + member] == 0) return false;
  }
  return true;
}

}  // namespace averaging
