// Brings the samples of requests to the members' workers, and their answers together.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/request.h"
#include "core/router.h"
#include "core/settings.h"

namespace averaging {

// How a call ended.
enum class CallEnd {
  kAnswered,   // and the answer counts
  kNotFinite,  // it held infinities or NaN, and counts but for these rows
  kInvalid,    // of another type or shape
  kFailed,     // the worker said so
  kLate,       // its request was over
};

enum class RequestEnd {
  kComplete,   // every member answered
  kPartial,    // enough of them did
  kFailed,     // too few did, for they failed
  kDeadline,   // too few did in time
  kCancelled,  // nobody wants the answer any more
};

// Counts what happens. Any thread may call it.
class Meter {
 public:
  Meter() = default;
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;
  virtual ~Meter() = default;

  // So many more samples wait for a worker alone, or for whichever of the member's is free first; fewer, if negative.
  virtual void queued(size_t member, std::optional<size_t> worker, int64_t change) = 0;
  // Each call that begins ends.
  virtual void call_began(size_t member, size_t worker, int64_t rows) = 0;
  virtual void call_ended(size_t member, size_t worker, int64_t rows, CallEnd end) = 0;
  virtual void request_came() = 0;
  // It took so long, and had so many samples.
  virtual void request_ended(RequestEnd end, int64_t rows, std::chrono::steady_clock::duration time) = 0;
  // A request waited so long until every member had begun with it.
  virtual void waited(std::chrono::steady_clock::duration time) = 0;
};

// Makes calls.
class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;

  // Throws std::exception if the worker cannot be asked.
  virtual std::shared_ptr<Call> prepare(size_t member, size_t worker, Chunk chunk) = 0;
};

// Nobody waits in it: whoever submits goes on, and the thread that brings what was missing tells the client. A thread of
// its own looks after deadlines and cancelled requests.
class Engine {
 public:
  // All outlive the engine.
  Engine(const Settings& settings, Transport& transport, Meter& meter);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  void submit(std::unique_ptr<Client> client);

  // How a call ended: `answer` has the numbers of its rows, and is not needed afterwards.
  void answered(Call& call, const float* answer);
  void failed(Call& call, CallEnd end, const std::string& message);

  // Ends the thread; there must be no request in flight.
  void stop();

 private:
  static constexpr std::chrono::milliseconds kLook{50};  // between looks for cancelled requests

  void pump(size_t member);
  void ask(size_t member, const Router::Order& order);
  void end_failed(size_t member, const Router::Order& order, CallEnd end, bool was_overdue, const std::string& message);
  std::string where(size_t member, size_t worker, Rows rows) const;
  void lose(const std::shared_ptr<Request>& request, size_t member, Rows rows, const std::string& why);
  void settle(const std::shared_ptr<Request>& request, size_t member, int64_t rows);
  void finish(const std::shared_ptr<Request>& request, RequestEnd end);
  void tell(Request& request, RequestEnd end);
  void mark_overdue(Request& request);
  void watch();
  void look();

  const Settings& settings_;
  Transport& transport_;
  Meter& meter_;
  std::deque<Router> routers_;  // one for each member
  std::mutex mutex_;            // of all that follows
  std::condition_variable wake_;
  std::set<std::shared_ptr<Request>> requests_;
  std::vector<std::weak_ptr<Request>> ended_early_;  // calls of theirs may be in flight
  Time next_look_ = Time::max();
  bool stopping_ = false;
  std::thread watch_;
};

}  // namespace averaging
