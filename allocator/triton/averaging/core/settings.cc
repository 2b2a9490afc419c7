#include "core/settings.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "core/json.h"

namespace averaging {

namespace {

// Runs `read` and puts the name of what it reads before the message of its error.
template <typename Read>
auto named(const std::string& name, Read read) {
  try {
    return read();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(name + ": " + error.what());
  }
}

double at_least(double least, double value) {
  if (!(value >= least) || !std::isfinite(value)) {
    throw std::invalid_argument(std::to_string(value) + " is less than " + std::to_string(least));
  }
  return value;
}

double positive(double value) {
  if (!(value > 0) || !std::isfinite(value)) throw std::invalid_argument(std::to_string(value) + " is not above 0");
  return value;
}

int64_t whole(double value, double least, double most = 1e15) {
  if (at_least(least, value) > most || value != std::floor(value)) {
    throw std::invalid_argument(std::to_string(value) + " is no whole number up to " + std::to_string(most));
  }
  return static_cast<int64_t>(value);
}

template <typename Value>
Value choice(const std::string& given, std::initializer_list<std::pair<const char*, Value>> allowed) {
  std::string names;
  for (const auto& [name, value] : allowed) {
    if (given == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw std::invalid_argument("'" + given + "' is none of " + names);
}

// The parameters of a model's configuration; each is a text.
class Parameters {
 public:
  explicit Parameters(const Json& config) : parameters_(config.find("parameters")) {}

  template <typename Parse>
  auto read(const std::string& name, const std::string& otherwise, Parse parse) const {
    return named(name, [&] {
      const Json* parameter = parameters_ == nullptr ? nullptr : parameters_->find(name);
      return parse(parameter == nullptr ? otherwise : parameter->at("string_value").string());
    });
  }

 private:
  const Json* parameters_;
};

double number(const std::string& text) { return Json::parse(text).number(); }

Worker worker_of(const Json& json) {
  Worker worker;
  worker.model = json.at("model").string();
  worker.batch = named("batch", [&] { return whole(json.at("batch").number(), 1); });
  if (const Json* share = json.find("share")) worker.share = named("share", [&] { return positive(share->number()); });
  if (const Json* input = json.find("input")) {
    worker.by_reference =
        named("input", [&] { return choice<bool>(input->string(), {{"INPUT", false}, {"SEG", true}}); });
  }
  return worker;
}

Member member_of(const Json& json) {
  Member member;
  member.name = json.at("model").string();
  return named("member " + member.name, [&] {
    member.weight = named("weight", [&] { return positive(json.at("weight").number()); });
    for (const Json& worker : json.at("workers").array()) member.workers.push_back(worker_of(worker));
    if (member.workers.empty()) throw std::invalid_argument("it has no workers");
    return member;
  });
}

std::vector<Member> members_of(const std::string& text) {
  std::vector<Member> members;
  const Json json = Json::parse(text);
  for (const Json& member : json.at("members").array()) members.push_back(member_of(member));
  if (members.empty()) throw std::invalid_argument("there are no members");
  return members;
}

// Only relations of weights count: what is summed later needs no division.
void normalise(std::vector<Member>& members, Rule rule) {
  if (rule == Rule::kAverage) {
    for (Member& member : members) member.weight = 1;
  }
  double total = 0;
  for (const Member& member : members) total += member.weight;
  for (Member& member : members) member.weight /= total;
}

// Of one sample in the first input, or of its answer in the first output.
std::vector<int64_t> shape_of(const Json& config, const std::string& tensors) {
  return named(tensors, [&] {
    std::vector<int64_t> shape;
    for (const Json& size : config.at(tensors).array().at(0).at("dims").array()) {
      shape.push_back(whole(size.number(), 1));
    }
    if (shape.empty()) throw std::invalid_argument("it has no dimension");
    return shape;
  });
}

}  // namespace

Settings Settings::parse(std::string_view text) {
  const Json config = Json::parse(text);
  const Parameters parameters(config);
  Settings settings;
  settings.model = config.at("name").string();
  settings.sample = shape_of(config, "input");
  settings.shape = shape_of(config, "output");
  settings.members = parameters.read("workers", "{}", members_of);
  settings.rule = parameters.read("rule", "weighted", [](const std::string& given) {
    return choice<Rule>(given, {{"average", Rule::kAverage}, {"weighted", Rule::kWeighted}, {"vote", Rule::kVote}});
  });
  settings.scores = parameters.read("scores", "probabilities", [](const std::string& given) {
    return choice<Scores>(given, {{"probabilities", Scores::kProbabilities}, {"logits", Scores::kLogits}});
  });
  settings.routing = parameters.read("routing", "pull", [](const std::string& given) {
    return choice<Routing>(given, {{"pull", Routing::kPull}, {"weights", Routing::kWeights}});
  });
  const auto all = static_cast<double>(settings.members.size());
  settings.segment = parameters.read("segment_size", "128", [](const auto& given) { return whole(number(given), 1); });
  const int64_t quorum =
      parameters.read("quorum", "0", [&](const auto& given) { return whole(number(given), 0, all); });
  settings.quorum = quorum == 0 ? settings.members.size() : static_cast<size_t>(quorum);
  settings.retries = static_cast<int>(
      parameters.read("retries", "0", [](const auto& given) { return whole(number(given), 0, 100); }));
  settings.deadline = std::chrono::duration<double>(
      parameters.read("deadline_seconds", "60", [](const auto& given) { return positive(number(given)); }));
  normalise(settings.members, settings.rule);
  return settings;
}

size_t Settings::width() const {
  return static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
}

bool Settings::any_by_reference() const {
  return std::any_of(members.begin(), members.end(), [](const Member& member) {
    return std::any_of(member.workers.begin(), member.workers.end(),
                       [](const Worker& worker) { return worker.by_reference; });
  });
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace averaging
