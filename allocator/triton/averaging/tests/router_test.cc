#include "core/router.h"

#include <map>
#include <random>

#include "tests/check.h"
#include "tests/settings_of.h"

using namespace averaging;

namespace {

using End = Router::End;

// The router only tells requests apart.
std::shared_ptr<Request> stand_in() {
  auto anything = std::make_shared<int>();
  auto* address = reinterpret_cast<Request*>(anything.get());
  return {std::move(anything), address};
}

Settings settings_of(const std::string& workers, const std::string& parameters = "") {
  return Settings::parse(config_of(member("a", 1, workers) + "," + member("b", 1, worker("b0", 1)), parameters));
}

const Time kStart{std::chrono::hours(1)};

// Samples that wait for each worker alone, or for whichever is free first, as they are told.
struct Told {
  Router::Listener listener() {
    return [this](std::optional<size_t> worker, int64_t change) { waiting[worker] += change; };
  }

  int64_t sum() const {
    int64_t result = 0;
    for (const auto& [worker, rows] : waiting) result += rows;
    return result;
  }

  std::map<std::optional<size_t>, int64_t> waiting;
};

// Rows that each worker takes if it is asked in turn and all calls end before the next is made.
std::map<size_t, int64_t> shares_of(Router& router, Time now = kStart) {
  std::map<size_t, int64_t> shares;
  while (const auto order = router.take(now)) {
    shares[order->worker] += order->chunk.rows.count();
    router.ended(order->worker, End::kAnswered, false, now);
  }
  return shares;
}

}  // namespace

TEST(each_row_is_taken_once_in_chunks_of_the_workers_batch) {
  std::mt19937 random(0);
  for (const char* routing : {"pull", "weights"}) {
    for (int round = 0; round < 200; round++) {
      const int batches[] = {1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 40)};
      const auto segment = static_cast<int64_t>(1 + random() % 50);
      const Settings settings =
          settings_of(worker("a0", batches[0], 3) + "," + worker("a1", batches[1]),
                      parameter("routing", routing) + parameter("segment_size", std::to_string(segment)));
      Told told;
      Router router(settings, settings.members[0], told.listener());
      const auto request = stand_in();
      const auto rows = static_cast<int64_t>(1 + random() % 300);
      router.put(request, rows, kStart);
      int64_t left = rows;
      CHECK(told.sum() == left);
      std::vector<int> seen(static_cast<size_t>(rows));
      std::vector<size_t> flying;
      while (true) {
        if (const auto order = router.take(kStart)) {
          const Rows taken = order->chunk.rows;
          CHECK(taken.count() >= 1 && taken.count() <= batches[order->worker]);
          CHECK(taken.begin / segment == (taken.end - 1) / segment);
          for (int64_t row = taken.begin; row < taken.end; row++) seen[static_cast<size_t>(row)]++;
          left -= taken.count();
          CHECK(told.sum() == left && (std::string(routing) == "weights" || told.waiting[std::nullopt] == left));
          flying.push_back(order->worker);
          if (random() % 2 == 0) continue;
        } else if (flying.empty()) {
          break;
        }
        std::swap(flying[random() % flying.size()], flying.back());
        router.ended(flying.back(), End::kAnswered, false, kStart);
        flying.pop_back();
      }
      CHECK((seen == std::vector<int>(static_cast<size_t>(rows), 1)));
    }
  }
}

TEST(a_worker_has_two_calls_in_flight_at_most) {
  const Settings settings = settings_of(worker("a0", 1));
  Router router(settings, settings.members[0]);
  router.put(stand_in(), 5, kStart);
  CHECK(router.take(kStart) && router.take(kStart) && !router.take(kStart));
  router.ended(0, End::kAnswered, false, kStart);
  CHECK(router.take(kStart) && !router.take(kStart));
}

TEST(by_weights_rows_go_in_proportion_to_the_shares_over_requests) {
  const Settings settings = settings_of(worker("a0", 8, 1) + "," + worker("a1", 8, 3), parameter("routing", "weights"));
  Router router(settings, settings.members[0]);
  std::map<size_t, int64_t> total;
  for (int i = 0; i < 100; i++) {
    router.put(stand_in(), 8, kStart);
    for (const auto& [worker, rows] : shares_of(router)) total[worker] += rows;
  }
  CHECK(total[0] == 200 && total[1] == 600);
}

TEST(by_pull_a_slow_worker_keeps_nobody_waiting) {
  const Settings settings = settings_of(worker("a0", 8, 9) + "," + worker("a1", 8));
  Router router(settings, settings.members[0]);
  router.put(stand_in(), 80, kStart);
  int64_t quick = 0;
  std::vector<size_t> slow;
  while (const auto order = router.take(kStart)) {
    if (order->worker == 0) {
      slow.push_back(0);  // never ends
    } else {
      quick += order->chunk.rows.count();
      router.ended(1, End::kAnswered, false, kStart);
    }
  }
  CHECK(!slow.empty() && slow.size() <= 2 && quick == 80 - 8 * static_cast<int64_t>(slow.size()));
}

TEST(older_requests_come_first) {
  const Settings settings = settings_of(worker("a0", 8));
  Router router(settings, settings.members[0]);
  const auto old = stand_in(), young = stand_in();
  router.put(old, 16, kStart);
  router.put(young, 8, kStart);
  CHECK(router.take(kStart)->chunk.request == old && router.take(kStart)->chunk.request == old);
}

TEST(a_retry_goes_to_another_worker_in_its_batch_size) {
  for (const char* routing : {"pull", "weights"}) {
    const Settings settings = settings_of(worker("a0", 8, 9) + "," + worker("a1", 3), parameter("routing", routing));
    Router router(settings, settings.members[0]);
    router.put(stand_in(), 8, kStart);
    const auto order = router.take(kStart);
    CHECK(order->worker == 0);
    router.ended(0, End::kFailed, false, kStart);
    router.retry(order->chunk, 0, kStart);
    int64_t rows = 0;
    while (const auto again = router.take(kStart)) {
      CHECK(again->worker == 1 && again->chunk.retries == 1);
      rows += again->chunk.rows.count();
      router.ended(1, End::kAnswered, false, kStart);
    }
    CHECK(rows == 8);
  }
}

TEST(an_only_worker_is_asked_again) {
  const Settings settings = settings_of(worker("a0", 8));
  Router router(settings, settings.members[0]);
  router.put(stand_in(), 8, kStart);
  const auto order = router.take(kStart);
  router.ended(0, End::kFailed, false, kStart);
  router.retry(order->chunk, 0, kStart);
  CHECK(router.take(kStart)->chunk.retries == 1);
}

TEST(who_fails_three_times_in_a_row_is_left_out_for_a_while) {
  for (const char* routing : {"pull", "weights"}) {
    const Settings settings = settings_of(worker("a0", 1, 9) + "," + worker("a1", 1), parameter("routing", routing));
    Router router(settings, settings.members[0]);
    router.put(stand_in(), 100, kStart);
    int failures = 0;
    int64_t answered = 0;
    while (const auto order = router.take(kStart)) {
      const bool bad = order->worker == 0;
      failures += bad;
      answered += !bad;
      router.ended(order->worker, bad ? End::kFailed : End::kAnswered, false, kStart);
    }
    CHECK(failures == 3 && answered == 97);
    router.put(stand_in(), 100, kStart);
    CHECK(shares_of(router).count(0) == 0);
    const Time later = kStart + Router::kOutOfService;
    router.put(stand_in(), 100, later);
    const auto shares = shares_of(router, later);  // it has no arrears to catch up
    CHECK(shares.at(0) >= 88 && (std::string(routing) == "pull" || shares.at(0) <= 92));
  }
}

TEST(if_nobody_is_in_service_all_are_asked_unless_the_member_may_be_missed) {
  for (const bool may_miss : {false, true}) {
    const Settings settings =
        settings_of(worker("a0", 1) + "," + worker("a1", 1), may_miss ? parameter("quorum", "1") : "");
    Told told;
    Router router(settings, settings.members[0], told.listener());
    router.put(stand_in(), 20, kStart);
    int failures = 0;
    while (const auto order = router.take(kStart)) {
      failures++;
      router.ended(order->worker, End::kFailed, false, kStart);
    }
    int64_t hopeless = 0;
    for (const Chunk& chunk : router.take_hopeless(kStart)) hopeless += chunk.rows.count();
    CHECK(failures == (may_miss ? 6 : 20) && failures + hopeless == 20);
    CHECK(told.sum() == 0);
  }
}

TEST(an_overdue_worker_gets_nothing_until_it_answers) {
  for (const char* routing : {"pull", "weights"}) {
    const Settings settings = settings_of(worker("a0", 1, 9) + "," + worker("a1", 1), parameter("routing", routing));
    Router router(settings, settings.members[0]);
    router.put(stand_in(), 1, kStart);
    CHECK(router.take(kStart)->worker == 0);
    router.put(stand_in(), 40, kStart);
    router.overdue(0);
    auto shares = shares_of(router);
    CHECK(shares[0] == 0 && shares[1] == 40);
    router.ended(0, End::kAnswered, true, kStart);
    router.put(stand_in(), 40, kStart);
    CHECK(shares_of(router)[0] > 0);
  }
}

TEST(a_dropped_request_is_freed) {
  for (const char* routing : {"pull", "weights"}) {
    const Settings settings = settings_of(worker("a0", 1) + "," + worker("a1", 1), parameter("routing", routing));
    Told told;
    Router router(settings, settings.members[0], told.listener());
    auto gone = stand_in();
    const auto kept = stand_in();
    router.put(gone, 300, kStart);
    router.put(kept, 3, kStart);
    router.drop(*gone);
    CHECK(gone.use_count() == 1 && told.sum() == 3);
    int64_t rows = 0;
    for (const auto& [worker, count] : shares_of(router)) rows += count;
    CHECK(rows == 3);
  }
}

TEST(what_waits_for_a_worker_alone_is_told_and_what_goes_to_another) {
  const Settings settings = settings_of(worker("a0", 4, 3) + "," + worker("a1", 4), parameter("routing", "weights"));
  Told told;
  Router router(settings, settings.members[0], told.listener());
  router.put(stand_in(), 32, kStart);
  CHECK(told.waiting[0] == 24 && told.waiting[1] == 8 && told.waiting[std::nullopt] == 0);
  const auto order = router.take(kStart);
  CHECK(order->worker == 0 && told.waiting[0] == 20);
  router.ended(0, End::kFailed, false, kStart);
  router.retry(order->chunk, 0, kStart);
  CHECK(told.waiting[0] == 20 && told.waiting[1] == 12);
  router.overdue(0);
  while (router.take(kStart)) {
  }
  CHECK(told.waiting[0] == 0 && told.waiting[1] == 24);  // two calls of four samples are in flight
}

int main() { return checks::run(); }
