// A request on its way through the members.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/combiner.h"
#include "core/router.h"
#include "core/settings.h"

namespace averaging {

enum class Refusal { kUnavailable, kCancelled };

// Who asked. It is told once, one way or the other, and outlives every call that reads its samples.
class Client {
 public:
  Client() = default;
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  virtual ~Client() = default;

  virtual int64_t rows() const = 0;
  // Where the answer is to be summed up.
  virtual float* sums() = 0;
  // Whether it wants to know how much the members disagree.
  virtual bool wants_disagreement() const = 0;
  // Whether it does not want the answer any more.
  virtual bool cancelled() const = 0;

  virtual void answer(const Combiner& sums) = 0;
  virtual void refuse(Refusal refusal, const std::string& message) = 0;
};

// A worker is asked about a chunk. Whoever implements it tells the engine how the call ended, once.
class Call {
 public:
  Call(size_t member, size_t worker, Chunk chunk) : member_(member), worker_(worker), chunk_(std::move(chunk)) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  virtual ~Call() = default;

  // Throws std::exception if the worker cannot be asked; then nobody tells the engine.
  virtual void send() = 0;
  // Nobody waits for the answer any more. Any thread may say so, also when the call has just ended.
  virtual void cancel() = 0;

  size_t member() const { return member_; }
  size_t worker() const { return worker_; }
  const Chunk& chunk() const { return chunk_; }

 private:
  const size_t member_, worker_;
  const Chunk chunk_;
};

class Request {
 public:
  Request(const Settings& settings, std::unique_ptr<Client> client, Time now);

  Client& client() { return *client_; }
  Combiner& combiner() { return combiner_; }
  Time since() const { return since_; }
  Time deadline() const { return deadline_; }

  // A member begins with it; true for the last one that does.
  bool begin(size_t member);

  // Rows of a member that are answered or lost from now on; true if they were the last that were missing.
  bool settle(size_t member, int64_t rows);
  // A member will not answer some rows; true if they will have too few members.
  bool lose(size_t member, Rows rows, const std::string& why);

  // The right to tell the client, for the first who asks.
  bool claim() { return !over_.exchange(true); }
  bool over() const { return over_; }

  // Calls in flight ----

  void add(Call& call);
  // True if it was given up before.
  bool remove(Call& call);
  void cancel_calls();
  struct Place {
    size_t member, worker;
  };
  // Counts what is in flight as given up, and says where it is.
  std::vector<Place> give_up_calls();

  // What went wrong so far, with the members that have not answered.
  std::string problems(bool late) const;
  bool lost_any() const;

 private:
  static constexpr size_t kLongest = 1000;  // characters of a message, or a few more

  const Settings& settings_;
  const std::unique_ptr<Client> client_;
  Combiner combiner_;
  const Time since_, deadline_;
  std::atomic<size_t> not_begun_;
  std::vector<std::atomic<bool>> begun_;
  std::atomic<int64_t> left_;                  // rows, of all members together
  std::vector<std::atomic<int64_t>> left_of_;  // and of each
  std::atomic<bool> over_ = false;
  mutable std::mutex mutex_;  // of all that follows
  std::vector<uint16_t> lost_;  // members that will not answer a row; empty if there are none
  std::string failures_;
  std::set<size_t> named_;  // members that are in it
  std::set<Call*> calls_, given_up_;
};

}  // namespace averaging
