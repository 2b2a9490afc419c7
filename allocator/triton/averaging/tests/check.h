// The least that a test needs: a check that says where it failed, and a list of tests to run.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace checks {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Added {
  Added(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void expect(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  std::ostringstream text;
  text << file << ":" << line << ": " << what;
  throw std::logic_error(text.str());
}

// The message of what `body` throws; a failure if it throws nothing.
template <typename Body>
std::string thrown(Body body) {
  try {
    body();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  throw std::runtime_error("nothing was thrown");
}

inline int run() {
  int failed = 0;
  for (const auto& [name, body] : tests()) {
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", name, error.what());
      failed++;
    }
  }
  std::fprintf(stderr, "%zu tests, %d failed\n", tests().size(), failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace checks

#define CHECK(condition) ::checks::expect((condition), #condition, __FILE__, __LINE__)
#define TEST(name)                                  \
  static void name();                               \
  static const ::checks::Added name##_added(#name, name); \
  static void name()
