#include "core/request.h"

#include <algorithm>
#include <sstream>
#include <utility>

namespace averaging {

Request::Request(const Settings& settings, std::unique_ptr<Client> client, Time now)
    : settings_(settings),
      client_(std::move(client)),
      combiner_(settings, client_->rows(), client_->sums(), client_->wants_disagreement()),
      since_(now),
      deadline_(now + std::chrono::duration_cast<Time::duration>(settings.deadline)),
      not_begun_(settings.members.size()),
      begun_(settings.members.size()),
      left_(client_->rows() * static_cast<int64_t>(settings.members.size())),
      left_of_(settings.members.size()) {
  for (auto& left : left_of_) left = client_->rows();
}

bool Request::begin(size_t member) { return !begun_[member].exchange(true) && --not_begun_ == 0; }

bool Request::settle(size_t member, int64_t rows) {
  left_of_[member] -= rows;
  return (left_ -= rows) == 0;
}

bool Request::lose(size_t member, Rows rows, const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (named_.insert(member).second || failures_.size() < kLongest) {  // whoever fails is named
    failures_ += (failures_.empty() ? "member " : "; member ") + settings_.members[member].name + ": " + why;
  }
  lost_.resize(static_cast<size_t>(client_->rows()));
  uint16_t most = 0;
  for (auto row = static_cast<size_t>(rows.begin); row < static_cast<size_t>(rows.end); row++) {
    most = std::max(most, ++lost_[row]);
  }
  return most + settings_.quorum > settings_.members.size();
}

void Request::add(Call& call) {
  const std::lock_guard lock(mutex_);
  calls_.insert(&call);
}

bool Request::remove(Call& call) {
  const std::lock_guard lock(mutex_);
  calls_.erase(&call);
  return given_up_.erase(&call) > 0;
}

void Request::cancel_calls() {
  const std::lock_guard lock(mutex_);
  for (Call* call : calls_) call->cancel();
}

std::vector<Request::Place> Request::give_up_calls() {
  const std::lock_guard lock(mutex_);
  std::vector<Place> places;
  for (const Call* call : calls_) places.push_back({call->member(), call->worker()});
  given_up_ = calls_;
  return places;
}

std::string Request::problems(bool late) const {
  const std::lock_guard lock(mutex_);
  std::ostringstream text;
  if (settings_.may_miss()) {
    text << "fewer than " << settings_.quorum << " of " << settings_.members.size() << " members answered; ";
  }
  text << failures_;
  if (late) {
    const char* separator = failures_.empty() ? "" : "; ";
    for (size_t member = 0; member < left_of_.size(); member++) {
      if (left_of_[member] == 0) continue;
      text << std::exchange(separator, "; ") << "member " << settings_.members[member].name << ": no answer within "
           << settings_.deadline.count() << " s";
    }
  }
  return text.str();
}

bool Request::lost_any() const {
  const std::lock_guard lock(mutex_);
  return !lost_.empty();
}

}  // namespace averaging
