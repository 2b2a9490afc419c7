#include "core/rules.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>

// The loops over numbers are compiled once more for AVX2, and the loader takes what the CPU has. No fused
// multiply-add is among them: an answer has the same bits on every CPU. Sanitizers are not ready when loaders choose.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(AVERAGING_SANITIZED)
#define AVERAGING_VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define AVERAGING_VECTORISED
#endif

namespace averaging {

namespace {

constexpr size_t kLanes = 8;

AVERAGING_VECTORISED
void store_scaled(float* __restrict sum, const float* __restrict answer, size_t count, float weight) {
  for (size_t i = 0; i < count; i++) sum[i] = weight * answer[i];
}

AVERAGING_VECTORISED
void add_scaled(float* __restrict sum, const float* __restrict answer, size_t count, float weight) {
  for (size_t i = 0; i < count; i++) sum[i] += weight * answer[i];
}

AVERAGING_VECTORISED
float maximum(const float* numbers, size_t count) {
  if (count < kLanes) return *std::max_element(numbers, numbers + count);
  float best[kLanes];
  std::copy_n(numbers, kLanes, best);
  size_t i = kLanes;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; lane++) {
      best[lane] = numbers[i + lane] > best[lane] ? numbers[i + lane] : best[lane];
    }
  }
  float result = *std::max_element(best, best + kLanes);
  for (; i < count; i++) result = std::max(result, numbers[i]);
  return result;
}

// p·ln(p) without branches or calls; 0 for what is not above 0, or so small that nobody could see it. Of the mantissa m,
// from 1/sqrt(2) to sqrt(2), the logarithm is 2·artanh((m - 1)/(m + 1)), whose series ends here: right to 3 in the last
// place.
inline float times_logarithm(float p) {
  constexpr int32_t kLeastNormal = 0x00800000, kRootOfHalf = 0x3F3504F3;
  int32_t bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits = bits > kLeastNormal ? bits : kLeastNormal;  // as numbers, where they are not negative
  const int32_t exponent = (bits - kRootOfHalf) >> 23;
  const int32_t mantissa_bits = bits - exponent * (1 << 23);
  float number, mantissa;
  std::memcpy(&number, &bits, sizeof number);
  std::memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
  const float x = (mantissa - 1) / (mantissa + 1), y = x * x;
  const float series = 2 * x * (1 + y * (1.0F / 3 + y * (1.0F / 5 + y * (1.0F / 7 + y / 9))));
  return number * (static_cast<float>(exponent) * 0.693147180559945F + series);
}

}  // namespace

AVERAGING_VECTORISED
bool finite(const float* numbers, size_t count) {
  constexpr uint32_t kExponent = 0x7F800000;  // all ones in infinities and NaN alone
  uint32_t found = 0;
  for (size_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, numbers + i, sizeof bits);
    found |= (bits & kExponent) == kExponent;
  }
  return found == 0;
}

size_t largest(const float* numbers, size_t count) {
  return static_cast<size_t>(std::find(numbers, numbers + count, maximum(numbers, count)) - numbers);
}

void softmax(const float* numbers, size_t count, float* result) {
  const float top = maximum(numbers, count);  // taken away, so that no exponent overflows
  double total = 0;
  for (size_t i = 0; i < count; i++) {
    result[i] = std::exp(numbers[i] - top);
    total += static_cast<double>(result[i]);
  }
  scale(result, count, static_cast<float>(1 / total));
}

AVERAGING_VECTORISED
double entropy(const float* probabilities, size_t count) {
  double lanes[kLanes] = {};
  const auto subtract = [&](const float* block) {
    for (size_t lane = 0; lane < kLanes; lane++) lanes[lane] -= static_cast<double>(times_logarithm(block[lane]));
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) subtract(probabilities + i);
  float rest[kLanes] = {};
  std::copy(probabilities + i, probabilities + count, rest);
  subtract(rest);
  return std::accumulate(lanes, lanes + kLanes, 0.0);
}

AVERAGING_VECTORISED
void scale(float* numbers, size_t count, float factor) {
  for (size_t i = 0; i < count; i++) numbers[i] *= factor;
}

Adder::Adder(const Settings& settings)
    : votes_(settings.rule == Rule::kVote),
      logits_(settings.scores == Scores::kLogits),
      width_(settings.width()),
      classes_(settings.classes()),
      scratch_(logits_ && !votes_ ? width_ : 0) {}

void Adder::add(float* sum, const float* answer, float weight, bool first) {
  if (votes_) return vote(sum, answer, weight, first);  // the largest logit is the largest probability
  if (logits_) {
    for (size_t i = 0; i < width_; i += classes_) softmax(answer + i, classes_, scratch_.data() + i);
    answer = scratch_.data();
  }
  if (first) {
    store_scaled(sum, answer, width_, weight);
  } else {
    add_scaled(sum, answer, width_, weight);
  }
}

double Adder::entropy_of(const float* answer) const {
  if (votes_) return 0;
  const auto places = static_cast<double>(width_ / classes_);
  return entropy(logits_ ? scratch_.data() : answer, width_) / places;
}

void Adder::vote(float* sum, const float* answer, float weight, bool first) const {
  if (first) std::fill_n(sum, width_, 0.0F);
  for (size_t i = 0; i < width_; i += classes_) sum[i + largest(answer + i, classes_)] += weight;
}

}  // namespace averaging
