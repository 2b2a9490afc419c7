#include "core/router.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace averaging {

void Queue::push_back(Chunk chunk) {
  rows_ += chunk.rows.count();
  chunks_.push_back(std::move(chunk));
}

void Queue::push_front(Chunk chunk) {
  rows_ += chunk.rows.count();
  chunks_.push_front(std::move(chunk));
}

Chunk Queue::take(int64_t batch) {
  Chunk& head = chunks_.front();
  Chunk taken = head;
  if (head.rows.count() > batch) {
    head.rows.begin += batch;
    taken.rows.end = head.rows.begin;
  } else {
    chunks_.pop_front();
  }
  rows_ -= taken.rows.count();
  return taken;
}

void Queue::move_all(std::vector<Chunk>& to) { move_from(chunks_.begin(), to); }

void Queue::move_those_of(const Request& request, std::vector<Chunk>& to) {
  move_from(std::stable_partition(chunks_.begin(), chunks_.end(),
                                  [&](const Chunk& chunk) { return chunk.request.get() != &request; }),
            to);
}

void Queue::move_from(std::deque<Chunk>::iterator first, std::vector<Chunk>& to) {
  for (auto chunk = first; chunk != chunks_.end(); ++chunk) rows_ -= chunk->rows.count();
  std::move(first, chunks_.end(), std::back_inserter(to));
  chunks_.erase(first, chunks_.end());
}

Router::Router(const Settings& settings, const Member& member, Listener listener)
    : settings_(settings), member_(member), listener_(std::move(listener)), workers_(member.workers.size()) {}

void Router::put(const std::shared_ptr<Request>& request, int64_t rows, Time now) {
  const std::lock_guard lock(mutex_);
  look_who_is_away(now);
  for (int64_t begin = 0; begin < rows; begin += settings_.segment) {
    Chunk segment{request, {begin, std::min(begin + settings_.segment, rows)}};
    if (settings_.routing == Routing::kWeights) {
      deal(std::move(segment), now);
    } else {
      shared_.push_back(std::move(segment));
    }
  }
  tell();
}

std::optional<Router::Order> Router::take(Time now) {
  const std::lock_guard lock(mutex_);
  look_who_is_away(now);
  const bool anyone = anyone_in_service(now);
  std::optional<size_t> best;
  for (size_t i = 0; i < workers_.size(); i++) {
    const State& state = workers_[i];
    if (!usable(i, now, anyone) || state.in_flight >= kDepth || (state.queue.empty() && shared_.empty())) continue;
    const auto rank = [&](size_t worker) {
      return std::pair(workers_[worker].in_flight, -member_.workers[worker].share);
    };
    if (!best || rank(i) < rank(*best)) best = i;
  }
  if (!best) return std::nullopt;
  State& state = workers_[*best];
  state.in_flight++;
  Order order{*best, (state.queue.empty() ? shared_ : state.queue).take(member_.workers[*best].batch)};
  tell();
  return order;
}

std::vector<Chunk> Router::take_hopeless(Time now) {
  const std::lock_guard lock(mutex_);
  std::vector<Chunk> found;
  if (settings_.may_miss() && !anyone_in_service(now)) {
    shared_.move_all(found);
    for (State& state : workers_) state.queue.move_all(found);
    tell();
  }
  return found;
}

void Router::drop(const Request& request) {
  std::vector<Chunk> dropped;  // freed after the lock: the last one may free the request
  const std::lock_guard lock(mutex_);
  shared_.move_those_of(request, dropped);
  for (State& state : workers_) state.queue.move_those_of(request, dropped);
  tell();
}

void Router::ended(size_t worker, End end, bool was_overdue, Time now) {
  const std::lock_guard lock(mutex_);
  State& state = workers_[worker];
  state.in_flight--;
  if (was_overdue) state.overdue--;
  if (end == End::kAnswered) state.errors = 0;
  if (end == End::kFailed && ++state.errors >= kErrorsInARow) state.out_until = now + kOutOfService;
}

void Router::retry(Chunk chunk, size_t failed_worker, Time now) {
  const std::lock_guard lock(mutex_);
  const bool anyone = anyone_in_service(now);
  size_t next = failed_worker;
  do {
    next = (next + 1) % workers_.size();
  } while (next != failed_worker && anyone && !workers_[next].in_service(now));
  chunk.retries++;
  workers_[next].queue.push_front(std::move(chunk));
  tell();
}

void Router::overdue(size_t worker) {
  const std::lock_guard lock(mutex_);
  workers_[worker].overdue++;
}

bool Router::anyone_in_service(Time now) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const State& state) { return state.in_service(now); });
}

bool Router::usable(size_t worker, Time now, bool anyone) const {
  return anyone ? workers_[worker].in_service(now) : !settings_.may_miss();
}

// Deals rows out in pieces of the workers' batch sizes; each goes to who would be finished first.
void Router::deal(Chunk chunk, Time now) {
  const bool anyone = anyone_in_service(now);
  while (chunk.rows.count() > 0) {
    const auto finish = [&](size_t worker) {
      const auto rows = std::min(member_.workers[worker].batch, chunk.rows.count());
      return workers_[worker].finish + static_cast<double>(rows) / member_.workers[worker].share;
    };
    std::optional<size_t> best;
    for (size_t i = 0; i < workers_.size(); i++) {
      if (anyone && !workers_[i].in_service(now)) continue;
      if (!best || finish(i) < finish(*best)) best = i;
    }
    State& state = workers_[*best];
    state.finish = finish(*best);
    const int64_t middle = chunk.rows.begin + std::min(member_.workers[*best].batch, chunk.rows.count());
    state.queue.push_back({chunk.request, {chunk.rows.begin, middle}, chunk.retries});
    chunk.rows.begin = middle;
  }
}

// Gives what waits for workers out of service to those that are left, and lets who is back start level with the others.
void Router::look_who_is_away(Time now) {
  std::vector<Chunk> orphaned;
  const bool anyone = anyone_in_service(now);
  for (State& state : workers_) {
    if (!state.in_service(now)) {
      state.away = true;
      if (anyone) state.queue.move_all(orphaned);
    } else if (state.away) {
      state.away = false;
      for (const State& other : workers_) state.finish = std::max(state.finish, other.finish);
    }
  }
  for (Chunk& chunk : orphaned) deal(std::move(chunk), now);
  if (!orphaned.empty()) tell();
}

void Router::tell() {
  if (const int64_t change = shared_.change()) listener_(std::nullopt, change);
  for (size_t i = 0; i < workers_.size(); i++) {
    if (const int64_t change = workers_[i].queue.change()) listener_(i, change);
  }
}

}  // namespace averaging
