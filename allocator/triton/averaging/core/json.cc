#include "core/json.h"

#include <charconv>
#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace averaging {

namespace {

constexpr int kDeepest = 100;  // nesting; the parser recurses

void append_utf8(std::string& text, uint32_t point) {
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else if (point < 0x800) {
    text += static_cast<char>(0xC0 | point >> 6);
    text += static_cast<char>(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    text += static_cast<char>(0xE0 | point >> 12);
    text += static_cast<char>(0x80 | (point >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (point & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | point >> 18);
    text += static_cast<char>(0x80 | (point >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (point >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (point & 0x3F));
  }
}

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = any();
    skip_space();
    if (at_ != text_.size()) fail("the end");
    return value;
  }

 private:
  Json any() {
    if (++depth_ > kDeepest) fail("less nesting");
    skip_space();
    Json result;
    switch (peek()) {
      case '{':
        result.value_ = object();
        break;
      case '[':
        result.value_ = array();
        break;
      case '"':
        result.value_ = string();
        break;
      case 't':
        expect("true");
        result.value_ = true;
        break;
      case 'f':
        expect("false");
        result.value_ = false;
        break;
      case 'n':
        expect("null");
        break;
      default:
        result.value_ = number();
    }
    --depth_;
    return result;
  }

  Json::Object object() {
    Json::Object fields;
    sequence('{', '}', [&] {
      skip_space();
      std::string key = string();
      skip_space();
      expect(":");
      fields.push_back({std::move(key), any()});
    });
    return fields;
  }

  std::vector<Json> array() {
    std::vector<Json> values;
    sequence('[', ']', [&] { values.push_back(any()); });
    return values;
  }

  template <typename Element>
  void sequence(char open, char close, Element element) {
    expect({&open, 1});
    skip_space();
    if (peek() != close) {
      element();
      for (skip_space(); peek() == ','; skip_space()) {
        ++at_;
        element();
      }
    }
    expect({&close, 1});
  }

  std::string string() {
    expect("\"");
    std::string result;
    while (peek() != '"') {
      const char next = text_[at_++];
      if (next == '\\') {
        escape(result);
      } else {
        result += next;
      }
    }
    ++at_;
    return result;
  }

  void escape(std::string& result) {
    const char kind = peek();
    ++at_;
    switch (kind) {
      case 'b':
        result += '\b';
        break;
      case 'f':
        result += '\f';
        break;
      case 'n':
        result += '\n';
        break;
      case 'r':
        result += '\r';
        break;
      case 't':
        result += '\t';
        break;
      case 'u': {
        uint32_t point = hexadecimal();
        if (point >= 0xD800 && point < 0xDC00) {  // half of a pair
          expect("\\u");
          point = 0x10000 + ((point - 0xD800) << 10) + (hexadecimal() - 0xDC00);
        }
        append_utf8(result, point);
        break;
      }
      default:
        result += kind;
    }
  }

  uint32_t hexadecimal() {
    uint32_t value = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || end != digits.data() + 4) fail("four hexadecimal digits");
    at_ += 4;
    return value;
  }

  double number() {
    const size_t end = text_.find_first_not_of("+-0123456789.eE", at_);
    std::istringstream digits{std::string(text_.substr(at_, end - at_))};
    digits.imbue(std::locale::classic());  // whatever the process has set: a dot is a dot
    double value = 0;
    if (!(digits >> value) || digits.peek() != std::istringstream::traits_type::eof()) fail("a value");
    at_ = std::min(end, text_.size());
    return value;
  }

  void expect(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) fail("'" + std::string(wanted) + "'");
    at_ += wanted.size();
  }

  char peek() const {
    if (at_ >= text_.size()) fail("more");
    return text_[at_];
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  [[noreturn]] void fail(const std::string& wanted) const {
    throw std::invalid_argument("not JSON: " + wanted + " expected at character " + std::to_string(at_));
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).whole(); }

const Json* Json::find(std::string_view key) const {
  if (const auto* fields = std::get_if<Object>(&value_)) {
    for (const Field& field : *fields) {
      if (field.key == key) return &field.value;
    }
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  if (const Json* found = find(key)) return *found;
  throw std::invalid_argument(std::string(key) + " is missing");
}

const std::string& Json::string() const {
  if (const auto* found = std::get_if<std::string>(&value_)) return *found;
  throw std::invalid_argument("a string is expected");
}

double Json::number() const {
  if (const auto* found = std::get_if<double>(&value_)) return *found;
  throw std::invalid_argument("a number is expected");
}

const std::vector<Json>& Json::array() const {
  if (const auto* found = std::get_if<std::vector<Json>>(&value_)) return *found;
  throw std::invalid_argument("a list is expected");
}

}  // namespace averaging
