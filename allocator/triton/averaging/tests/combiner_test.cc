#include "core/combiner.h"

#include <cmath>
#include <thread>

#include "tests/check.h"
#include "tests/settings_of.h"

using namespace averaging;

namespace {

Settings three(const std::string& parameters = "") {
  return Settings::parse(config_of(member("a", 2, worker("a0", 1)) + "," + member("b", 1, worker("b0", 1)) + "," +
                                       member("c", 1, worker("c0", 1)),
                                   parameters));
}

}  // namespace

TEST(members_that_add_at_once_are_averaged) {
  const Settings settings = three();
  constexpr int64_t kRows = 1000;
  std::vector<float> sums(2 * kRows, std::nanf(""));
  Combiner combiner(settings, kRows, sums.data());
  std::vector<std::thread> threads;
  for (size_t member = 0; member < 3; member++) {
    threads.emplace_back([&, member] {
      for (int64_t row = 0; row < kRows; row += 7) {
        const Rows rows{row, std::min(row + 7, kRows)};
        std::vector<float> answer;
        for (int64_t i = rows.begin; i < rows.end; i++) {
          answer.insert(answer.end(), {static_cast<float>(i), static_cast<float>(member)});
        }
        CHECK(combiner.add(member, rows, answer.data()).lost.empty());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  combiner.close();
  combiner.normalise();
  CHECK(combiner.fewest() == 3);
  for (size_t row = 0; row < static_cast<size_t>(kRows); row++) {
    CHECK(sums[2 * row] == static_cast<float>(row) && sums[2 * row + 1] == 0.75F);
  }
}

TEST(a_row_without_a_member_is_the_average_of_the_others) {
  const Settings settings = three();
  float sums[4];
  Combiner combiner(settings, 2, sums);
  const float a[] = {4, 4, 4, 4}, b[] = {1, 1};
  combiner.add(0, {0, 2}, a);
  combiner.add(1, {1, 2}, b);
  combiner.close();
  CHECK(combiner.fewest() == 1);
  combiner.normalise();
  CHECK(sums[0] == 4 && sums[2] == 3);
  CHECK((combiner.answered() == std::vector<uint8_t>{1, 0, 0, 1, 1, 0}));
  CHECK(combiner.answered_all(0) && !combiner.answered_all(1) && !combiner.answered_all(2));
}

TEST(rows_that_are_not_finite_are_left_out) {
  const Settings settings = three();
  float sums[6];
  Combiner combiner(settings, 3, sums);
  const float a[] = {1, 1, 1, std::nanf(""), 1, 1};
  CHECK((combiner.add(0, {0, 3}, a).lost == std::vector<int64_t>{1}));
  const float b[] = {5, 5};
  combiner.add(1, {1, 2}, b);
  combiner.close();
  combiner.normalise();
  CHECK(sums[2] == 5 && sums[3] == 5 && sums[4] == 1);
}

TEST(nothing_is_added_to_a_closed_one) {
  const Settings settings = three();
  float sums[2] = {7, 7};
  Combiner combiner(settings, 1, sums);
  combiner.close();
  const float a[] = {1, 1};
  CHECK(!combiner.add(0, {0, 1}, a).in_time);
  CHECK(sums[0] == 7 && combiner.fewest() == 0);
}

TEST(members_disagree_by_their_jensen_shannon_divergence) {
  const Settings settings = three();
  float sums[6];
  Combiner combiner(settings, 3, sums, true);
  const float a[] = {1, 0, 0.5F, 0.5F, 0.9F, 0.1F}, b[] = {0, 1, 0.5F, 0.5F, 0.3F, 0.7F};
  combiner.add(0, {0, 3}, a);
  combiner.add(1, {0, 3}, b);
  combiner.add(2, {1, 2}, b + 2);  // is missing in the others
  combiner.close();
  combiner.normalise();
  const auto found = combiner.disagreement();
  const auto h = [](double p) { return p > 0 && p < 1 ? -p * std::log(p) - (1 - p) * std::log(1 - p) : 0; };
  CHECK(std::abs(static_cast<double>(found[0]) - h(2.0 / 3)) < 1e-6);
  CHECK(found[1] >= 0 && found[1] < 1e-6F);
  CHECK(std::abs(static_cast<double>(found[2]) - (h(0.7) - 2 * h(0.9) / 3 - h(0.3) / 3)) < 1e-6);
}

TEST(votes_disagree_by_their_entropy_and_logits_as_probabilities) {
  const float a[] = {9, 0}, b[] = {0, 2};
  const double p = std::exp(9) / (std::exp(9) + 1), q = 1 / (std::exp(2) + 1);
  const auto h = [](double one) { return -one * std::log(one) - (1 - one) * std::log(1 - one); };
  const double expected[] = {h(0.75), h(0.75 * p + 0.25 * q) - 0.75 * h(p) - 0.25 * h(q)};
  for (const bool votes : {true, false}) {
    const Settings settings = three(parameter("scores", "logits") + (votes ? parameter("rule", "vote") : ""));
    float sums[2];
    Combiner combiner(settings, 1, sums, true);
    combiner.add(0, {0, 1}, a);
    combiner.add(1, {0, 1}, b);
    combiner.add(2, {0, 1}, a);
    combiner.close();
    combiner.normalise();
    CHECK(std::abs(static_cast<double>(combiner.disagreement()[0]) - expected[votes ? 0 : 1]) < 1e-6);
  }
}

TEST(each_place_of_a_map_counts_as_much_for_the_disagreement) {
  const Settings settings = Settings::parse(config_of(member("a", 1, worker("a0", 1)) + "," +
                                                          member("b", 1, worker("b0", 1)), "", "[2, 2]"));
  float sums[4];
  Combiner combiner(settings, 1, sums, true);
  const float a[] = {1, 0, 1, 0}, b[] = {0, 1, 1, 0};
  combiner.add(0, {0, 1}, a);
  combiner.add(1, {0, 1}, b);
  combiner.close();
  combiner.normalise();
  CHECK(std::abs(static_cast<double>(combiner.disagreement()[0]) - std::log(2) / 2) < 1e-6);
}

TEST(disagreement_is_nothing_that_nobody_asked_for) {
  const Settings settings = three();
  float sums[2];
  Combiner combiner(settings, 1, sums);
  const float a[] = {1, 0};
  combiner.add(0, {0, 1}, a);
  combiner.close();
  combiner.normalise();
  CHECK(combiner.disagreement().empty());
}

int main() { return checks::run(); }
