#include "core/rules.h"

#include <cmath>
#include <limits>
#include <random>

#include "tests/check.h"
#include "tests/settings_of.h"

using namespace averaging;

namespace {

Settings settings_of(const std::string& parameters, const std::string& dims) {
  return Settings::parse(config_of(member("a", 1, worker("a0", 1)), parameters, dims));
}

bool near(float one, double two) { return std::abs(static_cast<double>(one) - two) < 1e-6; }

}  // namespace

TEST(finite_sees_every_place) {
  for (size_t count = 1; count < 40; count++) {
    std::vector<float> numbers(count, std::numeric_limits<float>::max());
    CHECK(finite(numbers.data(), count));
    for (size_t place = 0; place < count; place++) {
      for (const float bad : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
        std::vector<float> wrong = numbers;
        wrong[place] = bad;
        CHECK(!finite(wrong.data(), count));
      }
    }
  }
}

TEST(largest_is_the_first_of_equal_ones) {
  std::mt19937 random(0);
  for (size_t count = 1; count < 70; count++) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = static_cast<float>(random() % 5) - 3;
    size_t best = 0;
    for (size_t i = 1; i < count; i++) best = numbers[i] > numbers[best] ? i : best;
    CHECK(largest(numbers.data(), count) == best);
  }
}

TEST(softmax_of_large_logits_is_finite) {
  const float logits[] = {1000, 1000, -1000};
  float result[3];
  softmax(logits, 3, result);
  CHECK(near(result[0], 0.5) && near(result[1], 0.5) && near(result[2], 0));
}

TEST(entropy_is_in_nats_and_what_is_impossible_adds_nothing) {
  const float uniform[] = {0.25F, 0.25F, 0.25F, 0.25F}, certain[] = {0, 1, 0}, skewed[] = {0.75F, 0, 0.25F};
  CHECK(near(static_cast<float>(entropy(uniform, 4)), std::log(4.0)));
  CHECK(std::abs(entropy(certain, 3)) < 1e-30);
  CHECK(near(static_cast<float>(entropy(skewed, 3)), -0.75 * std::log(0.75) - 0.25 * std::log(0.25)));
}

TEST(entropy_is_right_for_any_numbers) {
  std::mt19937 random(0);
  for (size_t count = 1; count < 300; count++) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = std::exp(-static_cast<float>(random() % 100000) / 1000);  // down to 4e-44
    double expected = 0;
    for (const float number : numbers) expected -= number > 0 ? number * std::log(static_cast<double>(number)) : 0;
    CHECK(std::abs(entropy(numbers.data(), count) - expected) <= 1e-6 * std::max(1.0, expected));
  }
}

TEST(the_first_answer_overwrites_and_others_add) {
  for (const char* rule : {"average", "weighted"}) {
    Adder adder(settings_of(parameter("rule", rule), "[11]"));
    std::vector<float> sum(11, std::nanf("")), answer(11, 2);
    adder.add(sum.data(), answer.data(), 0.25F, true);
    adder.add(sum.data(), answer.data(), 0.75F, false);
    for (const float number : sum) CHECK(number == 2);
  }
}

TEST(logits_are_averaged_as_probabilities) {
  Adder adder(settings_of(parameter("scores", "logits"), "[2]"));
  const float one[] = {0, 0}, two[] = {static_cast<float>(std::log(3.0)), 0};
  float sum[2];
  adder.add(sum, one, 0.5F, true);
  adder.add(sum, two, 0.5F, false);
  CHECK(near(sum[0], 0.625) && near(sum[1], 0.375));
}

TEST(each_place_of_a_map_has_a_vote) {
  Adder adder(settings_of(parameter("rule", "vote"), "[2, 3]"));
  const float one[] = {0, 0, 9, 5, 5, 4}, two[] = {1, 2, 0, 0, 1, 0};
  float sum[6] = {9, 9, 9, 9, 9, 9};
  adder.add(sum, one, 0.75F, true);
  adder.add(sum, two, 0.25F, false);
  const float expected[] = {0, 0.25F, 0.75F, 0.75F, 0.25F, 0};
  for (size_t i = 0; i < 6; i++) CHECK(sum[i] == expected[i]);
}

int main() { return checks::run(); }
