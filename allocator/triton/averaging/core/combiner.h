// The sum of the members' answers to one request, straight in the client's buffer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "core/settings.h"

namespace averaging {

// Samples [begin, end) of a request.
struct Rows {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t count() const { return end - begin; }
};

// Members add from their own threads at the same time; once closed, nothing is written any more.
class Combiner {
 public:
  // `sums` has room for the answers of all rows and outlives the last add. `disagreement` tells whether it is asked for.
  Combiner(const Settings& settings, int64_t rows, float* sums, bool disagreement = false);

  struct Added {
    bool in_time;               // false: it was closed before, and nothing was added
    std::vector<int64_t> lost;  // rows that were left out, as they hold infinities or NaN
  };
  // Adds a member's answer for some rows, each of which it gives at most once.
  Added add(size_t member, Rows rows, const float* answer);

  // Waits for who is adding; what comes later is not in time.
  void close();

  // Of a closed one ----

  // The fewest members that any row has.
  size_t fewest() const;
  // Makes the sums averages: where members are missing, the others' weights count for the whole.
  void normalise();
  // How much the members of each row disagree, in nats, once the sums are averages: the entropy of the average without
  // the average of the members' entropies. That is the generalised Jensen-Shannon divergence of their distributions,
  // 0 if they are the same. Empty if nobody asked for it.
  std::vector<float> disagreement() const;
  // Whether a member is in a row's average: member by member for the first row, then for the second, and so on.
  const std::vector<uint8_t>& answered() const { return answered_; }
  // Whether a member is in the average of every row.
  bool answered_all(size_t member) const;

 private:
  static constexpr int64_t kStripe = 64;  // rows that share a lock: long enough to be cheap, short enough to be free

  const Settings& settings_;
  const int64_t rows_;
  const size_t members_, width_;
  float* const sums_;
  std::vector<uint8_t> answered_;
  std::vector<double> entropies_;  // of the members of each row, as their answers are summed; empty if not wanted
  std::vector<uint16_t> counts_;  // members in each row
  std::shared_mutex gate_;        // shared by who adds
  bool closed_ = false;
  std::array<std::mutex, 32> stripes_;
};

}  // namespace averaging
