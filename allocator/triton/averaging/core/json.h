// JSON values, as far as model configurations need them.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace averaging {

class Json {
 public:
  struct Field;

  // Parses a whole text; std::invalid_argument tells where it is not JSON.
  static Json parse(std::string_view text);

  // The value of an object's field, or nullptr if there is none or this is no object.
  const Json* find(std::string_view key) const;
  // The same, but std::invalid_argument names what is missing.
  const Json& at(std::string_view key) const;

  // The content; std::invalid_argument if it is of another kind.
  const std::string& string() const;
  double number() const;
  const std::vector<Json>& array() const;

 private:
  friend class JsonParser;
  using Object = std::vector<Field>;
  std::variant<std::nullptr_t, bool, double, std::string, std::vector<Json>, Object> value_ = nullptr;
};

struct Json::Field {
  std::string key;
  Json value;
};

}  // namespace averaging
