// How one sample's answer of a member goes into the sum of all members' answers.
#pragma once

#include <cstddef>
#include <vector>

#include "core/settings.h"

namespace averaging {

// Whether all numbers are finite.
bool finite(const float* numbers, size_t count);

// Index of the largest of finite numbers, the lowest of equal ones.
size_t largest(const float* numbers, size_t count);

// softmax(numbers), to another place.
void softmax(const float* numbers, size_t count, float* result);

// Entropy of a distribution in nats.
double entropy(const float* probabilities, size_t count);

// Adds answers by the rule of the settings. Not synchronised: each thread has its own.
class Adder {
 public:
  explicit Adder(const Settings& settings);

  // sum += weight·answer, where answer is what the rule makes of it: probabilities, or 1 for the class with the most.
  // A sample's first answer overwrites what was there, so that nobody must zero the sum before.
  void add(float* sum, const float* answer, float weight, bool first);

  // Entropy of what the rule made of the answer that was added last, the mean of its places; 0 for a vote.
  double entropy_of(const float* answer) const;

 private:
  void vote(float* sum, const float* answer, float weight, bool first) const;

  const bool votes_, logits_;
  const size_t width_, classes_;
  std::vector<float> scratch_;  // probabilities of one sample, if the answers are logits
};

// numbers *= factor
void scale(float* numbers, size_t count, float factor);

}  // namespace averaging
