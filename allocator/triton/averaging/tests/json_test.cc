#include "core/json.h"

#include "tests/check.h"

using averaging::Json;
using checks::thrown;

TEST(values_of_every_kind) {
  const Json json = Json::parse(R"( {"a": [1, -2.5e3, true, false, null], "b": "x", "empty": {}, "none": []} )");
  CHECK(json.at("a").array().size() == 5);
  CHECK(json.at("a").array()[1].number() == -2500);
  CHECK(json.at("b").string() == "x");
  CHECK(json.find("c") == nullptr);
  CHECK(json.at("b").find("c") == nullptr);
  CHECK(json.at("none").array().empty());
}

TEST(texts_with_escapes) {
  CHECK(Json::parse(R"("\"\\\/\b\f\n\r\t")").string() == "\"\\/\b\f\n\r\t");
  CHECK(Json::parse(R"("\u0041\u00e9\u20ac\ud83d\ude00")").string() == "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST(a_text_inside_a_text) {
  const Json outer = Json::parse(R"({"workers": "{\"members\": [{\"model\": \"m\"}]}"})");
  CHECK(Json::parse(outer.at("workers").string()).at("members").array()[0].at("model").string() == "m");
}

TEST(what_is_not_json) {
  for (const char* text : {"", "{", "[1,", "[1 2]", "{\"a\"}", "\"a", "tru", "1x", "{} {}", "\"\\u12\"", "-", "1.2.3"}) {
    CHECK(thrown([&] { Json::parse(text); }).find("not JSON") == 0);
  }
  CHECK(thrown([] { Json::parse(std::string(200, '[')); }).find("nesting") != std::string::npos);
}

TEST(another_kind_than_expected) {
  const Json json = Json::parse(R"({"a": 1})");
  CHECK(thrown([&] { static_cast<void>(json.at("b")); }) == "b is missing");
  CHECK(thrown([&] { static_cast<void>(json.at("a").string()); }) == "a string is expected");
  CHECK(thrown([&] { static_cast<void>(json.at("a").array()); }) == "a list is expected");
  CHECK(thrown([&] { static_cast<void>(json.number()); }) == "a number is expected");
}

int main() { return checks::run(); }
