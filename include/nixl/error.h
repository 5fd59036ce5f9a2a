// Results and errors of the whole library: Status and Result<T> inside and across the backend
// contract, nixl::Error out of the public C++ API. Values; no thread rule beyond that of a value.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#if defined(__GNUC__)
#define NIXL_API __attribute__((visibility("default")))
#else
#define NIXL_API
#endif

namespace nixl {

// What went wrong, by what the caller can do about it. The values are the established wire and
// Python constants (NIXL_ERR_*), see errorName().
enum class ErrorCode : int8_t {
    OK = 0,
    NOT_POSTED = -1,          // the transfer has never been posted
    INVALID_PARAM = -2,       // an argument is wrong; nothing was done
    BACKEND = -3,             // a device, file or library reported a failure
    NOT_FOUND = -4,           // no such agent, backend, region, file or object
    MISMATCH = -5,            // two arguments do not fit each other (counts, lengths, versions)
    NOT_ALLOWED = -6,         // legal in another state or process, or a permission is missing
    REPOST_ACTIVE = -7,       // the transfer is still in progress
    UNKNOWN = -8,             // a defect in the library
    NOT_SUPPORTED = -9,       // no backend, or this system, can do it
    REMOTE_DISCONNECT = -10,  // the peer is gone
    CANCELED = -11,           // ended by cancel or release
    NO_TELEMETRY = -12,       // the transfer has not finished, so it has no figures yet
    TIMEOUT = -13,            // a deadline passed
};

// "NIXL_ERR_NOT_FOUND" and so on; "NIXL_SUCCESS" for OK. The text is static.
NIXL_API const char* errorName(ErrorCode code) noexcept;

// The outcome of an operation: OK, or a code with a message that names the object, the value and
// the cause. `descriptorIndex` is the user's index where one descriptor is to blame, else -1;
// `systemErrno` the errno where the system refused, else 0.
class [[nodiscard]] Status {
  public:
    Status() = default;
    Status(ErrorCode code, std::string message, int system_errno = 0, int64_t index = -1)
        : code_(code), systemErrno_(system_errno), index_(index), message_(std::move(message)) {}

    static Status invalidParam(std::string message, int64_t index = -1) {
        return {ErrorCode::INVALID_PARAM, std::move(message), 0, index};
    }
    static Status notFound(std::string message, int64_t index = -1) {
        return {ErrorCode::NOT_FOUND, std::move(message), 0, index};
    }
    static Status backend(std::string message, int system_errno = 0) {
        return {ErrorCode::BACKEND, std::move(message), system_errno};
    }
    static Status mismatch(std::string message, int64_t index = -1) {
        return {ErrorCode::MISMATCH, std::move(message), 0, index};
    }
    static Status notAllowed(std::string message) {
        return {ErrorCode::NOT_ALLOWED, std::move(message)};
    }
    static Status notSupported(std::string message) {
        return {ErrorCode::NOT_SUPPORTED, std::move(message)};
    }
    static Status disconnected(std::string message) {
        return {ErrorCode::REMOTE_DISCONNECT, std::move(message)};
    }
    static Status canceled(std::string message) {
        return {ErrorCode::CANCELED, std::move(message)};
    }
    static Status timeout(std::string message) { return {ErrorCode::TIMEOUT, std::move(message)}; }

    bool ok() const noexcept { return code_ == ErrorCode::OK; }
    ErrorCode code() const noexcept { return code_; }
    int systemErrno() const noexcept { return systemErrno_; }
    int64_t descriptorIndex() const noexcept { return index_; }
    const std::string& message() const noexcept { return message_; }

  private:
    ErrorCode code_ = ErrorCode::OK;
    int systemErrno_ = 0;
    int64_t index_ = -1;
    std::string message_;
};

// A value, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
  public:
    Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
    Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

    bool ok() const noexcept { return value_.has_value(); }
    const Status& status() const noexcept { return status_; }
    // REQUIRES: ok()
    T& value() & { return *value_; }               // NOLINT(bugprone-unchecked-optional-access)
    const T& value() const& { return *value_; }    // NOLINT(bugprone-unchecked-optional-access)
    T&& value() && { return *std::move(value_); }  // NOLINT(bugprone-unchecked-optional-access)

  private:
    Status status_;
    std::optional<T> value_;
};

// Returns early with the Status of an expression that failed.
#define NIXL_RETURN_IF_ERROR(expr)                          \
    do {                                                    \
        if (::nixl::Status nixl_s = (expr); !nixl_s.ok()) { \
            return nixl_s;                                  \
        }                                                   \
    } while (false)

// What every function of the public C++ API throws. what() is "NIXL_ERR_…: message".
class NIXL_API Error : public std::runtime_error {
  public:
    // Names the parties; any may be empty.
    struct Context {
        std::string agent;
        std::string peer;
        std::string backend;
    };

    explicit Error(const Status& status);
    Error(const Status& status, Context context);
    ~Error() override;

    ErrorCode code() const noexcept { return status_.code(); }
    const Status& status() const noexcept { return status_; }
    const std::string& agent() const noexcept { return context_.agent; }
    const std::string& peer() const noexcept { return context_.peer; }
    const std::string& backend() const noexcept { return context_.backend; }
    int64_t descriptorIndex() const noexcept { return status_.descriptorIndex(); }
    int systemErrno() const noexcept { return status_.systemErrno(); }

  private:
    Status status_;
    Context context_;
};

}  // namespace nixl
