// Triton's errors and ours: exceptions on this side of the C border, error objects on the other.
#pragma once

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "triton/api.h"

namespace averaging {

// Deletes with one of Triton's functions.
template <auto Delete>
struct Deleter {
  template <typename Object>
  void operator()(Object* object) const noexcept {
    if constexpr (std::is_void_v<decltype(Delete(object))>) {
      Delete(object);
    } else {
      const std::unique_ptr<TRITONSERVER_Error, Deleter<TRITONSERVER_ErrorDelete>> ignored(Delete(object));
    }
  }
};

template <typename Object, auto Delete>
using Owned = std::unique_ptr<Object, Deleter<Delete>>;

using Error = Owned<TRITONSERVER_Error, TRITONSERVER_ErrorDelete>;

// Throws std::runtime_error with the message of an error.
inline void check(TRITONSERVER_Error* returned) {
  if (const Error error{returned}) throw std::runtime_error(TRITONSERVER_ErrorMessage(error.get()));
}

// An error's message for the log; nothing else can be done about it.
inline void log_if(TRITONSERVER_Error* returned) noexcept {
  if (const Error error{returned}) {
    const Error ignored{
        TRITONSERVER_LogMessage(TRITONSERVER_LOG_ERROR, "averaging", 0, TRITONSERVER_ErrorMessage(error.get()))};
  }
}

inline Error new_error(TRITONSERVER_ErrorCode code, const std::string& message) {
  return Error{TRITONSERVER_ErrorNew(code, ("averaging: " + message).c_str())};
}

// Runs `body` and returns what it throws as Triton's error.
template <typename Body>
TRITONSERVER_Error* guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, (std::string("averaging: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, (std::string("averaging: ") + error.what()).c_str());
  }
}

// The JSON text of a message, which is deleted.
inline std::string json_of(TRITONSERVER_Message* message) {
  const Owned<TRITONSERVER_Message, TRITONSERVER_MessageDelete> owned(message);
  const char* base = nullptr;
  size_t bytes = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &base, &bytes));
  return {base, bytes};
}

}  // namespace averaging
