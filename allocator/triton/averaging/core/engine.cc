#include "core/engine.h"

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

namespace averaging {

namespace {

Time now() { return std::chrono::steady_clock::now(); }

std::string text_of(Rows rows) {
  return "rows " + std::to_string(rows.begin) + "-" + std::to_string(rows.end - 1) + ": ";
}

// Neighbouring rows as ranges.
std::vector<Rows> ranges(const std::vector<int64_t>& rows) {
  std::vector<Rows> result;
  for (const int64_t row : rows) {
    if (!result.empty() && result.back().end == row) {
      result.back().end++;
    } else {
      result.push_back({row, row + 1});
    }
  }
  return result;
}

}  // namespace

Engine::Engine(const Settings& settings, Transport& transport, Meter& meter)
    : settings_(settings), transport_(transport), meter_(meter) {
  for (size_t member = 0; member < settings.members.size(); member++) {
    routers_.emplace_back(settings, settings.members[member], [this, member](std::optional<size_t> worker, int64_t change) {
      meter_.queued(member, worker, change);
    });
  }
  watch_ = std::thread([this] { watch(); });
}

Engine::~Engine() { stop(); }

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (watch_.joinable()) watch_.join();
}

void Engine::submit(std::unique_ptr<Client> client) {
  const int64_t rows = client->rows();
  const auto request = std::make_shared<Request>(settings_, std::move(client), now());
  meter_.request_came();
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    requests_.insert(request);
    wake = std::min(request->deadline(), request->since() + kLook) < next_look_;
  }
  if (wake) wake_.notify_one();
  for (Router& router : routers_) router.put(request, rows, request->since());
  for (size_t member = 0; member < routers_.size(); member++) pump(member);
}

void Engine::answered(Call& call, const float* answer) {
  const auto& [request, rows, retries] = call.chunk();
  const bool was_overdue = request->remove(call);
  routers_[call.member()].ended(call.worker(), Router::End::kAnswered, was_overdue, now());
  const auto added = request->combiner().add(call.member(), rows, answer);
  const CallEnd in_time = added.lost.empty() ? CallEnd::kAnswered : CallEnd::kNotFinite;
  meter_.call_ended(call.member(), call.worker(), rows.count(), added.in_time ? in_time : CallEnd::kLate);
  if (added.in_time) {
    for (const Rows lost : ranges(added.lost)) {
      lose(request, call.member(), lost, where(call.member(), call.worker(), lost) + "the answer is not finite");
    }
    settle(request, call.member(), rows.count() - static_cast<int64_t>(added.lost.size()));
  }
  pump(call.member());
}

void Engine::failed(Call& call, CallEnd end, const std::string& message) {
  const bool was_overdue = call.chunk().request->remove(call);
  end_failed(call.member(), {call.worker(), call.chunk()}, end, was_overdue, message);
  pump(call.member());
}

// Gives every free worker of a member what it can take.
void Engine::pump(size_t member) {
  Router& router = routers_[member];
  while (const auto order = router.take(now())) ask(member, *order);
  for (const Chunk& chunk : router.take_hopeless(now())) {
    lose(chunk.request, member, chunk.rows, text_of(chunk.rows) + "none of its workers is in service");
  }
}

void Engine::ask(size_t member, const Router::Order& order) {
  const auto& request = order.chunk.request;
  if (request->over()) return routers_[member].ended(order.worker, Router::End::kNobodysFault, false, now());
  if (request->begin(member)) meter_.waited(now() - request->since());
  meter_.call_began(member, order.worker, order.chunk.rows.count());
  std::shared_ptr<Call> call;
  try {
    call = transport_.prepare(member, order.worker, order.chunk);
    request->add(*call);
    call->send();
  } catch (const std::exception& error) {
    const bool was_overdue = call != nullptr && request->remove(*call);
    end_failed(member, order, CallEnd::kFailed, was_overdue, error.what());
  }
}

void Engine::end_failed(size_t member, const Router::Order& order, CallEnd end, bool was_overdue,
                        const std::string& message) {
  const auto& [worker, chunk] = order;
  const bool over = chunk.request->over();
  meter_.call_ended(member, worker, chunk.rows.count(), over ? CallEnd::kLate : end);
  routers_[member].ended(worker, over ? Router::End::kNobodysFault : Router::End::kFailed, was_overdue, now());
  if (over) return;
  if (chunk.retries < settings_.retries) return routers_[member].retry(chunk, worker, now());
  lose(chunk.request, member, chunk.rows, where(member, worker, chunk.rows) + message);
}

std::string Engine::where(size_t member, size_t worker, Rows rows) const {
  return "worker " + settings_.members[member].workers[worker].model + ": " + text_of(rows);
}

void Engine::lose(const std::shared_ptr<Request>& request, size_t member, Rows rows, const std::string& why) {
  if (request->lose(member, rows, why)) finish(request, RequestEnd::kFailed);
  settle(request, member, rows.count());
}

void Engine::settle(const std::shared_ptr<Request>& request, size_t member, int64_t rows) {
  if (request->settle(member, rows)) {
    finish(request, request->lost_any() ? RequestEnd::kPartial : RequestEnd::kComplete);
  }
}

void Engine::finish(const std::shared_ptr<Request>& request, RequestEnd end) {
  if (!request->claim()) return;
  const bool early = end != RequestEnd::kComplete && end != RequestEnd::kPartial;
  {
    const std::lock_guard lock(mutex_);
    requests_.erase(request);
    if (early) ended_early_.push_back(request);
  }
  if (early) {
    for (Router& router : routers_) router.drop(*request);
    request->cancel_calls();
  }
  request->combiner().close();
  if (end == RequestEnd::kDeadline && request->combiner().fewest() >= settings_.quorum) end = RequestEnd::kPartial;
  meter_.request_ended(end, request->client().rows(), now() - request->since());
  tell(*request, end);
}

void Engine::tell(Request& request, RequestEnd end) {
  switch (end) {
    case RequestEnd::kComplete:
    case RequestEnd::kPartial:
      request.combiner().normalise();
      return request.client().answer(request.combiner());
    case RequestEnd::kFailed:
    case RequestEnd::kDeadline:
      return request.client().refuse(Refusal::kUnavailable, request.problems(end == RequestEnd::kDeadline));
    case RequestEnd::kCancelled:
      return request.client().refuse(Refusal::kCancelled, "the request was cancelled");
  }
}

// Workers that hold on to a request beyond its deadline get nothing more until they let it go.
void Engine::mark_overdue(Request& request) {
  const auto places = request.give_up_calls();
  for (const auto& [member, worker] : places) routers_[member].overdue(worker);
  for (const auto& [member, worker] : places) pump(member);  // what waits for them may go elsewhere
}

void Engine::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    next_look_ = Time::max();
    for (const auto& request : requests_) next_look_ = std::min({next_look_, request->deadline(), now() + kLook});
    if (!ended_early_.empty()) next_look_ = std::min(next_look_, now() + kLook);
    if (next_look_ == Time::max()) {
      wake_.wait(lock);
    } else if (wake_.wait_until(lock, next_look_) == std::cv_status::timeout) {
      lock.unlock();
      look();
      lock.lock();
    }
  }
}

void Engine::look() {
  std::vector<std::shared_ptr<Request>> running;
  std::vector<std::shared_ptr<Request>> overdue;
  {
    const std::lock_guard lock(mutex_);
    running.assign(requests_.begin(), requests_.end());
    const auto done = [&](const std::weak_ptr<Request>& ended) {
      auto request = ended.lock();
      if (request == nullptr || request->deadline() > now()) return request == nullptr;
      overdue.push_back(std::move(request));
      return true;
    };
    ended_early_.erase(std::remove_if(ended_early_.begin(), ended_early_.end(), done), ended_early_.end());
  }
  for (const auto& request : overdue) mark_overdue(*request);
  for (const auto& request : running) {
    if (request->client().cancelled()) {
      finish(request, RequestEnd::kCancelled);
    } else if (request->deadline() <= now()) {
      finish(request, RequestEnd::kDeadline);
    }
  }
}

}  // namespace averaging
