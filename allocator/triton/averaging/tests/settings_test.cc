#include "core/settings.h"

#include <utility>

#include "tests/check.h"
#include "tests/settings_of.h"

using namespace averaging;
using checks::thrown;

namespace {

const std::string kTwo = member("a", 3, worker("a0", 8) + "," + worker("a1", 32, 2)) + "," + member("b", 1, worker("b0", 4));

}  // namespace

TEST(everything_can_be_said) {
  const Settings settings = Settings::parse(
      config_of(kTwo, parameter("rule", "vote") + parameter("scores", "logits") + parameter("routing", "weights") +
                          parameter("segment_size", "64") + parameter("quorum", "1") + parameter("retries", "2") +
                          parameter("deadline_seconds", "0.5"),
                "[5, 3]"));
  CHECK(settings.model == "front");
  CHECK(settings.rule == Rule::kVote && settings.scores == Scores::kLogits && settings.routing == Routing::kWeights);
  CHECK(settings.segment == 64 && settings.quorum == 1 && settings.retries == 2 && settings.deadline.count() == 0.5);
  CHECK(settings.classes() == 3 && settings.width() == 15 && settings.may_miss());
  CHECK(settings.sample == std::vector<int64_t>{4});
  CHECK(settings.members[0].workers[1].model == "a1" && settings.members[0].workers[1].batch == 32);
  CHECK(settings.members[0].workers[1].share == 2 && !settings.any_by_reference());
}

TEST(what_is_not_said_has_defaults) {
  const Settings settings = Settings::parse(config_of(kTwo));
  CHECK(settings.rule == Rule::kWeighted && settings.scores == Scores::kProbabilities);
  CHECK(settings.routing == Routing::kPull && settings.quorum == 2 && !settings.may_miss() && settings.retries == 0);
}

TEST(weights_are_relative_and_an_average_has_none) {
  CHECK(Settings::parse(config_of(kTwo)).members[0].weight == 0.75);
  CHECK(Settings::parse(config_of(kTwo, parameter("rule", "average"))).members[0].weight == 0.5);
}

TEST(a_worker_may_want_references) {
  const std::string by_reference = R"({"model": "a0", "batch": 1, "input": "SEG"})";
  CHECK(Settings::parse(config_of(member("a", 1, by_reference))).any_by_reference());
}

TEST(what_is_wrong_is_named) {
  const auto problem = [](const std::string& members, const std::string& parameters = "") {
    return thrown([&] { Settings::parse(config_of(members, parameters)); });
  };
  CHECK(problem("").find("workers: there are no members") == 0);
  CHECK(problem(member("a", 1, "")) == "workers: member a: it has no workers");
  CHECK(problem(member("a", 0, worker("a0", 1))).find("workers: member a: weight: 0.0") == 0);
  CHECK(problem(member("a", 1, worker("a0", 0))).find("workers: member a: batch: 0.0") == 0);
  CHECK(problem(member("a", 1, worker("a0", 1, -1))).find("workers: member a: share: -1.0") == 0);
  CHECK(problem(member("a", 1, R"({"model": "a0", "batch": 1, "input": "X"})")).find("'X' is none of INPUT, SEG") !=
        std::string::npos);
  for (const auto& [name, value] : {std::pair("rule", "median"), std::pair("scores", "x"), std::pair("routing", "x"),
                                    std::pair("segment_size", "0"), std::pair("segment_size", "1.5"),
                                    std::pair("quorum", "3"), std::pair("quorum", "-1"), std::pair("retries", "-1"),
                                    std::pair("deadline_seconds", "0"), std::pair("deadline_seconds", "soon")}) {
    CHECK(problem(kTwo, parameter(name, value)).find(name) == 0);
  }
  CHECK(thrown([] { Settings::parse(config_of(kTwo, "", "[]")); }) == "output: it has no dimension");
}

int main() { return checks::run(); }
