#include "core/engine.h"

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <future>
#include <random>
#include <thread>

#include "tests/check.h"
#include "tests/settings_of.h"

using namespace averaging;

namespace {

constexpr std::chrono::seconds kLongest{60};

// What a client was told.
struct Told {
  bool answered = false;
  Refusal refusal{};
  std::string message;
  std::vector<float> sums;
  std::vector<uint8_t> members;
};

class TestClient : public Client {
 public:
  TestClient(int64_t rows, size_t width) : rows_(rows), sums_(static_cast<size_t>(rows) * width, std::nanf("")) {}
  ~TestClient() override { freed_.set_value(); }

  int64_t rows() const override { return rows_; }
  float* sums() override { return sums_.data(); }
  bool wants_disagreement() const override { return false; }
  bool cancelled() const override { return *cancelled_; }
  void answer(const Combiner& sums) override { told_.set_value({true, {}, "", sums_, sums.answered()}); }
  void refuse(Refusal refusal, const std::string& message) override {
    told_.set_value({false, refusal, message, {}, {}});
  }

  std::future<Told> told() { return told_.get_future(); }
  std::future<void> freed() { return freed_.get_future(); }
  std::shared_ptr<std::atomic<bool>> cancel() { return cancelled_; }

 private:
  const int64_t rows_;
  std::vector<float> sums_;
  std::promise<Told> told_;  // a second answer throws
  std::promise<void> freed_;
  std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
};

class TestMeter : public Meter {
 public:
  void queued(size_t, std::optional<size_t>, int64_t change) override { waiting += change; }
  void call_began(size_t, size_t, int64_t rows) override { asked += rows; }
  void call_ended(size_t, size_t, int64_t rows, CallEnd end) override {
    calls[static_cast<size_t>(end)]++;
    asked -= rows;
  }
  void request_came() override { came++; }
  void request_ended(RequestEnd end, int64_t rows, std::chrono::steady_clock::duration) override {
    requests[static_cast<size_t>(end)]++;
    samples += rows;
  }
  void waited(std::chrono::steady_clock::duration) override { waits++; }

  int of(CallEnd end) const { return calls[static_cast<size_t>(end)]; }
  int of(RequestEnd end) const { return requests[static_cast<size_t>(end)]; }

  std::atomic<int> calls[5] = {};
  std::atomic<int> requests[5] = {};
  std::atomic<int> waits = 0, came = 0;
  std::atomic<int64_t> samples = 0;             // of requests that ended
  std::atomic<int64_t> waiting = 0, asked = 0;  // samples now
};

// Calls wait until the test ends them; those of a worker that is broken cannot be made.
class TestTransport : public Transport {
 public:
  class TestCall : public Call {
   public:
    TestCall(TestTransport& transport, size_t member, size_t worker, Chunk chunk)
        : Call(member, worker, std::move(chunk)), transport_(transport) {}
    void send() override { transport_.sent(std::static_pointer_cast<TestCall>(self)); }
    void cancel() override { transport_.cancels++; }

    std::shared_ptr<Call> self;  // until it is sent

   private:
    TestTransport& transport_;
  };

  std::shared_ptr<Call> prepare(size_t member, size_t worker, Chunk chunk) override {
    if (broken.count({member, worker}) > 0) throw std::runtime_error("not loaded");
    auto call = std::make_shared<TestCall>(*this, member, worker, std::move(chunk));
    call->self = call;
    return call;
  }

  void sent(std::shared_ptr<TestCall> call) {
    call->self = nullptr;
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(call));
    changed_.notify_all();
  }

  // The next call, or nullptr if there is none.
  std::shared_ptr<Call> next() {
    const std::lock_guard lock(mutex_);
    return pop();
  }

  // The next call, or nullptr once it is closed.
  std::shared_ptr<Call> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !calls_.empty(); });
    return pop();
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  size_t waiting() {
    const std::lock_guard lock(mutex_);
    return calls_.size();
  }

  std::set<std::pair<size_t, size_t>> broken;
  std::atomic<int> cancels = 0;

 private:
  std::shared_ptr<Call> pop() {
    if (calls_.empty()) return nullptr;
    auto call = std::move(calls_.front());
    calls_.pop_front();
    return call;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Call>> calls_;
  bool closed_ = false;
};

struct Bench {
  explicit Bench(const std::string& parameters = "", const std::string& members = "")
      : settings(Settings::parse(config_of(
            members.empty() ? member("a", 1, worker("a0", 4) + "," + worker("a1", 4)) + "," +
                                  member("b", 3, worker("b0", 4))
                            : members,
            parameters))) {}

  std::future<Told> submit(int64_t rows, std::future<void>* freed = nullptr,
                           std::shared_ptr<std::atomic<bool>>* cancel = nullptr) {
    auto client = std::make_unique<TestClient>(rows, settings.width());
    auto told = client->told();
    if (freed != nullptr) *freed = client->freed();
    if (cancel != nullptr) *cancel = client->cancel();
    engine.submit(std::move(client));
    return told;
  }

  // Member a says 1 everywhere and b 5: the average is 4.
  void answer(const std::shared_ptr<Call>& call, float add = 0) {
    const std::vector<float> numbers(static_cast<size_t>(call->chunk().rows.count()) * settings.width(),
                                     (call->member() == 0 ? 1.0F : 5.0F) + add);
    engine.answered(*call, numbers.data());
  }

  void answer_all() {
    while (const auto call = transport.next()) answer(call);
  }

  const Settings settings;
  TestMeter meter;
  TestTransport transport;
  Engine engine{settings, transport, meter};
};

Told get(std::future<Told>& told) {
  CHECK(told.wait_for(kLongest) == std::future_status::ready);
  return told.get();
}

bool ready(const std::future<Told>& told) { return told.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }

}  // namespace

TEST(what_waits_and_what_is_asked_for_is_told_until_nothing_is) {
  for (const bool cancelled : {false, true}) {
    Bench bench;  // three workers of two members, with two calls of four samples each
    std::shared_ptr<std::atomic<bool>> cancel;
    auto told = bench.submit(60, nullptr, &cancel);
    CHECK(bench.meter.asked == 24 && bench.meter.waiting == 120 - 24);
    bench.answer(bench.transport.next());
    CHECK(bench.meter.asked == 24 && bench.meter.waiting == 120 - 28);
    *cancel = cancelled;
    if (cancelled) get(told);
    CHECK(!cancelled || bench.meter.waiting == 0);
    bench.answer_all();
    if (!cancelled) get(told);
    CHECK(bench.meter.asked == 0 && bench.meter.waiting == 0);
  }
}

TEST(a_call_that_cannot_be_made_is_not_asked_for) {
  Bench bench;
  bench.transport.broken = {{1, 0}};
  auto told = bench.submit(4);
  CHECK(!get(told).answered);
  bench.answer_all();
  CHECK(bench.meter.asked == 0 && bench.meter.waiting == 0);
}

TEST(the_last_answer_tells_the_client) {
  Bench bench;
  std::future<void> freed;
  auto told = bench.submit(11, &freed);
  std::shared_ptr<Call> last;
  while (auto call = bench.transport.next()) {
    CHECK(!ready(told));
    if (last != nullptr) bench.answer(last);
    last = std::move(call);
  }
  bench.answer(last);
  const Told answer = get(told);
  CHECK(answer.answered && answer.sums == std::vector<float>(22, 4));
  CHECK(bench.meter.of(CallEnd::kAnswered) == 6 && bench.meter.of(RequestEnd::kComplete) == 1 && bench.meter.waits == 1);
  CHECK(bench.meter.came == 1 && bench.meter.samples == 11);
  CHECK(freed.wait_for(std::chrono::seconds(0)) != std::future_status::ready);  // the last call reads its samples still
  last.reset();
  CHECK(freed.wait_for(kLongest) == std::future_status::ready);
}

TEST(many_requests_are_on_their_way_at_once) {
  Bench bench;
  std::vector<std::future<Told>> told;
  for (int i = 0; i < 8; i++) told.push_back(bench.submit(2));
  CHECK(bench.transport.waiting() == 6);  // two for each worker
  bench.answer_all();
  for (auto& each : told) CHECK(get(each).answered);
}

TEST(an_error_fails_the_request_at_once_and_says_where) {
  Bench bench;
  std::future<void> freed;
  auto told = bench.submit(100, &freed);
  bench.engine.failed(*bench.transport.next(), CallEnd::kFailed, "out of memory");
  const Told answer = get(told);
  CHECK(!answer.answered && answer.refusal == Refusal::kUnavailable);
  CHECK(answer.message == "member a: worker a0: rows 0-3: out of memory");
  CHECK(bench.transport.cancels > 0);
  bench.answer_all();  // those in flight; nothing new is asked
  CHECK(freed.wait_for(kLongest) == std::future_status::ready);
  CHECK(bench.meter.of(CallEnd::kLate) == 5 && bench.meter.of(RequestEnd::kFailed) == 1);
}

TEST(a_retry_makes_an_error_good) {
  Bench bench(parameter("retries", "1"));
  auto told = bench.submit(4);
  const auto failing = bench.transport.next();
  bench.engine.failed(*failing, CallEnd::kFailed, "once");
  bench.answer_all();
  CHECK(get(told).sums == std::vector<float>(8, 4));
  CHECK(bench.meter.of(CallEnd::kFailed) == 1 && bench.meter.of(CallEnd::kAnswered) == 2);
}

TEST(with_a_quorum_the_others_answer_row_by_row) {
  Bench bench(parameter("quorum", "1"));
  auto told = bench.submit(8);
  bool failed = false;
  while (const auto call = bench.transport.next()) {
    if (call->member() == 1 && !std::exchange(failed, true)) {
      bench.engine.failed(*call, CallEnd::kFailed, "no");
    } else {
      bench.answer(call);
    }
  }
  const Told answer = get(told);
  std::vector<float> expected(8, 1);
  expected.resize(16, 4);
  CHECK(answer.sums == expected && answer.members == (std::vector<uint8_t>{1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1}));
  CHECK(bench.meter.of(RequestEnd::kPartial) == 1);
}

TEST(without_enough_members_the_quorum_fails) {
  Bench bench(parameter("quorum", "1"));
  auto told = bench.submit(4);
  while (const auto call = bench.transport.next()) bench.engine.failed(*call, CallEnd::kFailed, "no");
  CHECK(get(told).message ==
        "fewer than 1 of 2 members answered; member a: worker a0: rows 0-3: no; member b: worker b0: rows 0-3: no");
}

TEST(rows_that_are_not_finite_count_as_failed) {
  for (const bool quorum : {false, true}) {
    Bench bench(quorum ? parameter("quorum", "1") : "");
    auto told = bench.submit(4);
    while (const auto call = bench.transport.next()) {
      if (call->member() == 1) {
        bench.answer(call);
        continue;
      }
      const float nan = std::nanf("");
      const float numbers[] = {1, 1, nan, nan, nan, 1, 1, 1};
      bench.engine.answered(*call, numbers);
    }
    const Told answer = get(told);
    if (quorum) {
      CHECK((answer.sums == std::vector<float>{4, 4, 5, 5, 5, 5, 4, 4}));
    } else {
      CHECK(answer.message == "member a: worker a0: rows 1-2: the answer is not finite");
    }
    CHECK(bench.meter.of(CallEnd::kNotFinite) == 1);
  }
}

TEST(a_worker_that_cannot_be_asked_is_an_error_and_not_a_recursion) {
  Bench bench;
  bench.transport.broken = {{1, 0}};
  for (int i = 0; i < 1000; i++) {
    auto told = bench.submit(1);
    CHECK(get(told).message == "member b: worker b0: rows 0-0: not loaded");
    bench.answer_all();
  }
}

TEST(a_worker_that_cannot_be_asked_is_made_up_for) {
  Bench bench(parameter("retries", "1") + parameter("segment_size", "1"));
  bench.transport.broken = {{0, 0}};
  auto told = bench.submit(20000);
  bench.answer_all();
  CHECK(get(told).answered);
  CHECK(bench.meter.of(CallEnd::kFailed) == Router::kErrorsInARow);
}

TEST(a_member_that_never_answers_is_given_up_at_the_deadline) {
  for (const bool quorum : {false, true}) {
    Bench bench(parameter("deadline_seconds", "0.1") + (quorum ? parameter("quorum", "1") : ""));
    std::future<void> freed;
    auto told = bench.submit(4, &freed);
    std::vector<std::shared_ptr<Call>> hung;
    // Answers what member a is asked; whether member b was asked.
    const auto answer_a = [&] {
      const size_t before = hung.size();
      while (auto call = bench.transport.next()) {
        if (call->member() == 1) {
          hung.push_back(std::move(call));
        } else {
          bench.answer(call);
        }
      }
      return hung.size() > before;
    };
    CHECK(answer_a());
    const Told answer = get(told);
    if (quorum) {
      CHECK(answer.answered && answer.sums == std::vector<float>(8, 1));
    } else {
      CHECK(answer.message == "member b: no answer within 0.1 s");
      CHECK(bench.meter.of(RequestEnd::kDeadline) == 1);
    }
    CHECK(freed.wait_for(std::chrono::seconds(0)) != std::future_status::ready);  // it may read the samples still
    for (bool waited = quorum; waited;) {  // soon nobody waits for it any more
      auto next = bench.submit(1);
      waited = answer_a();
      CHECK(get(next).sums == std::vector<float>(2, 1));
    }
    for (auto& call : hung) bench.answer(std::exchange(call, nullptr));
    CHECK(freed.wait_for(kLongest) == std::future_status::ready);
    CHECK(bench.meter.of(CallEnd::kLate) >= 1);
    auto again = bench.submit(1);
    bench.answer_all();
    CHECK(get(again).sums == std::vector<float>(2, 4));
  }
}

TEST(a_cancelled_request_ends) {
  Bench bench;
  std::future<void> freed;
  std::shared_ptr<std::atomic<bool>> cancel;
  auto told = bench.submit(100, &freed, &cancel);
  *cancel = true;
  CHECK(get(told).refusal == Refusal::kCancelled);
  bench.answer_all();
  CHECK(freed.wait_for(kLongest) == std::future_status::ready);
  CHECK(bench.meter.of(RequestEnd::kCancelled) == 1 && bench.meter.of(CallEnd::kAnswered) == 0);
}

TEST(whatever_happens_every_request_ends_once_with_the_right_answer) {
  for (const char* routing : {"pull", "weights"}) {
    Bench bench(parameter("quorum", "1") + parameter("retries", "1") + parameter("routing", routing) +
                parameter("deadline_seconds", "0.05") + parameter("segment_size", "5"));
    std::vector<std::thread> workers;
    for (unsigned seed = 0; seed < 3; seed++) {
      workers.emplace_back([&, seed] {
        std::mt19937 random(seed);
        while (const auto call = bench.transport.wait()) {
          switch (random() % 16) {
            case 0:
              bench.engine.failed(*call, CallEnd::kFailed, "bad luck");
              break;
            case 1:
              std::this_thread::sleep_for(std::chrono::milliseconds(2));
              [[fallthrough]];
            default:
              bench.answer(call);
          }
        }
      });
    }
    std::atomic<int> answered = 0;
    std::vector<std::thread> clients;
    for (unsigned seed = 0; seed < 4; seed++) {
      clients.emplace_back([&, seed] {
        std::mt19937 random(seed);
        for (int i = 0; i < 100; i++) {
          std::shared_ptr<std::atomic<bool>> cancel;
          auto told = bench.submit(1 + static_cast<int64_t>(random() % 60), nullptr, &cancel);
          if (random() % 8 == 0) *cancel = true;
          const Told answer = get(told);
          if (!answer.answered) continue;
          answered++;
          for (size_t row = 0; row < answer.members.size() / 2; row++) {
            const bool a = answer.members[2 * row] != 0, b = answer.members[2 * row + 1] != 0;
            const float expected = a && b ? 4 : a ? 1 : 5;
            CHECK(a || b);
            CHECK(std::abs(answer.sums[2 * row] - expected) < 1e-6F && answer.sums[2 * row + 1] == answer.sums[2 * row]);
          }
        }
      });
    }
    for (std::thread& client : clients) client.join();
    bench.transport.close();
    for (std::thread& worker : workers) worker.join();
    CHECK(answered > 0);
    int ended = 0;
    for (const auto& count : bench.meter.requests) ended += count;
    CHECK(ended == 400 && bench.meter.came == 400);
  }
}

int main() { return checks::run(); }
