// Settings for tests, as the configuration of a model gives them.
#pragma once

#include <string>

#include "core/settings.h"

namespace averaging {

inline std::string escaped(const std::string& text) {
  std::string result;
  for (const char each : text) result += each == '"' ? "\\\"" : std::string(1, each);
  return result;
}

// `parameters` are further ones: R"(, "rule": {"string_value": "vote"})".
inline std::string config_of(const std::string& members, const std::string& parameters = "",
                             const std::string& dims = "[2]") {
  return R"({"name": "front", "input": [{"name": "INPUT", "dims": [4]}], "output": [{"name": "PROBABILITIES", "dims": )" + dims +
         R"(}], "parameters": {"workers": {"string_value": ")" + escaped(R"({"members": [)" + members + "]}") + "\"}" +
         parameters + "}}";
}

inline std::string parameter(const std::string& name, const std::string& value) {
  return ", \"" + name + R"(": {"string_value": ")" + value + "\"}";
}

inline std::string member(const std::string& name, double weight, const std::string& workers) {
  return R"({"model": ")" + name + R"(", "weight": )" + std::to_string(weight) + R"(, "workers": [)" + workers + "]}";
}

inline std::string worker(const std::string& name, int batch, double share = 1) {
  return R"({"model": ")" + name + R"(", "batch": )" + std::to_string(batch) + R"(, "share": )" +
         std::to_string(share) + "}";
}

}  // namespace averaging
