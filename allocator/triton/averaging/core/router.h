// The samples that wait for one member, and which of its workers takes them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/combiner.h"
#include "core/settings.h"

namespace averaging {

class Request;
using Time = std::chrono::steady_clock::time_point;

// Rows of a request that one call of a worker is to answer.
struct Chunk {
  std::shared_ptr<Request> request;
  Rows rows;
  int retries = 0;  // calls that failed before
};

// Chunks in the order in which they are to be taken, and how many samples they have.
class Queue {
 public:
  bool empty() const { return chunks_.empty(); }
  void push_back(Chunk chunk);
  void push_front(Chunk chunk);
  // The first rows, as many as a batch at most; there are some.
  Chunk take(int64_t batch);
  void move_all(std::vector<Chunk>& to);
  void move_those_of(const Request& request, std::vector<Chunk>& to);
  // How many more samples there are than when this was last called.
  int64_t change() { return rows_ - std::exchange(told_, rows_); }

 private:
  void move_from(std::deque<Chunk>::iterator first, std::vector<Chunk>& to);

  std::deque<Chunk> chunks_;
  int64_t rows_ = 0, told_ = 0;
};

// Segments wait in a queue that all workers share, and a free one takes the next chunk of its own batch size (pull); or
// they are dealt out to queues of the workers' own in proportion to their shares (weights).
//
// A worker is out of service for a while after several errors in a row, for one that fails at once would else pull
// everything; and while a call of it is overdue. If nobody is left, all are asked nevertheless, unless requests can do
// without the member: then its chunks are hopeless.
class Router {
 public:
  static constexpr int kDepth = 2;         // calls in flight: one that is worked on, and one that waits for it in Triton
  static constexpr int kErrorsInARow = 3;  // then out of service
  static constexpr std::chrono::seconds kOutOfService{5};

  // Hears, while the router is locked, how many more samples wait for a worker alone, or for whichever is free first;
  // fewer, if negative.
  using Listener = std::function<void(std::optional<size_t> worker, int64_t change)>;

  Router(const Settings& settings, const Member& member, Listener listener = [](auto, auto) {});

  // Queues all rows of a request.
  void put(const std::shared_ptr<Request>& request, int64_t rows, Time now);

  struct Order {
    size_t worker;
    Chunk chunk;
  };
  // The next chunk for a worker that is free, which counts as in flight from now on.
  std::optional<Order> take(Time now);

  // Removes what nobody is going to answer.
  std::vector<Chunk> take_hopeless(Time now);

  // Removes what waits for a request that is over.
  void drop(const Request& request);

  // What became of a call -----

  enum class End { kAnswered, kFailed, kNobodysFault };
  void ended(size_t worker, End end, bool was_overdue, Time now);
  // Queues a chunk again after a failed call, for another worker if there is one.
  void retry(Chunk chunk, size_t failed_worker, Time now);
  // A call in flight has outlived its request.
  void overdue(size_t worker);

 private:
  struct State {
    Queue queue;  // for this worker alone
    int in_flight = 0;
    int overdue = 0;  // of these
    int errors = 0;   // in a row
    Time out_until{};
    double finish = 0;  // virtual: samples dealt to it by its share
    bool away = false;  // was out of service when it was last looked at

    bool in_service(Time now) const { return overdue == 0 && out_until <= now; }
  };

  bool anyone_in_service(Time now) const;
  bool usable(size_t worker, Time now, bool anyone) const;
  void deal(Chunk chunk, Time now);
  void look_who_is_away(Time now);
  void tell();

  const Settings& settings_;
  const Member& member_;
  const Listener listener_;
  std::mutex mutex_;  // of all that follows
  Queue shared_;
  std::vector<State> workers_;
};

}  // namespace averaging
