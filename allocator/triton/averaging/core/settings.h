// What a front model is told by its configuration.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace averaging {

enum class Rule { kAverage, kWeighted, kVote };
enum class Scores { kProbabilities, kLogits };
enum class Routing { kPull, kWeights };

// A Triton model that answers for a member.
struct Worker {
  std::string model;
  int64_t batch = 1;          // samples of a call at most
  double share = 1;           // of the member's samples, relative to its other workers
  bool by_reference = false;  // takes a reference to the samples in shared memory
};

struct Member {
  std::string name;
  double weight = 1;  // the members' sum is 1
  std::vector<Worker> workers;
};

struct Settings {
  std::string model;  // the front model's own name
  std::vector<Member> members;
  Rule rule = Rule::kWeighted;
  Scores scores = Scores::kProbabilities;
  Routing routing = Routing::kPull;
  int64_t segment = 128;  // samples
  size_t quorum = 1;      // members that every sample needs
  int retries = 0;        // calls for a chunk after its first
  std::chrono::duration<double> deadline{60};
  std::vector<int64_t> sample;  // shape of one sample
  std::vector<int64_t> shape;   // of one sample's answer; its last axis are the classes

  // Reads Triton's JSON of the model's configuration; std::invalid_argument says which parameter is wrong, and how.
  static Settings parse(std::string_view config);

  size_t classes() const { return static_cast<size_t>(shape.back()); }
  size_t width() const;  // numbers of one sample's answer
  bool may_miss() const { return quorum < members.size(); }
  bool any_by_reference() const;
};

// A shape for people: [128, 10].
std::string text_of(const std::vector<int64_t>& shape);

}  // namespace averaging
