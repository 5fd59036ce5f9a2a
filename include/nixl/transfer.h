// Handles and figures of transfers. A handle is owned by one user and move-only; the calls that
// take it (nixl::Agent) are thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nixl/descriptor.h"
#include "nixl/error.h"

namespace nixl {

enum class OpType : uint8_t { READ = 0, WRITE = 1 };

// READ moves bytes from the remote side to the local one, WRITE the other way.
NIXL_API const char* opName(OpType op) noexcept;

enum class XferState : uint8_t {
    PENDING,   // posted, not yet final
    DONE,      // every byte is in place
    FAILED,    // ended by an error
    CANCELED,  // ended by cancel, release or the agent's end
};

// Identifies a transfer or prepared list within its agent: slot and generation, so that a released
// or foreign id is an error. 0 is never valid.
using HandleId = uint64_t;

// One descriptor that failed: the user's index, the errno (0 where there is none) and how many
// bytes of it were moved before.
struct DescriptorFailure {
    uint64_t index = 0;
    int systemErrno = 0;
    uint64_t bytes = 0;
};

// Figures of the last finished post.
struct TransferTelemetry {
    std::chrono::system_clock::time_point startTime;
    std::chrono::microseconds postDuration{0};  // inside post
    std::chrono::microseconds xferDuration{0};  // from post to the end
    uint64_t totalBytes = 0;
    uint64_t descCount = 0;
};

// How a transfer goes, and why so; texts for people.
struct TransferExplanation {
    std::string backend;
    std::string lane;    // empty for storage
    std::string reason;  // why this backend and lane
    std::string device;
    uint64_t descriptors = 0;
    uint64_t segments = 0;  // after merging
    uint64_t bytes = 0;
    bool lastPostInline = false;  // whether the last post finished inside post
};

// How far the last post has come. A backend that cannot tell has moved nothing until the end.
struct TransferProgress {
    uint64_t bytesDone = 0;
    uint64_t bytesTotal = 0;
};

struct TransferCost {
    std::chrono::microseconds duration{0};
    std::chrono::microseconds margin{0};
    std::string method;
};

namespace detail {
class AgentImpl;
}

// Owns one prepared transfer; the destructor releases it (cancelling it if it is in progress).
// Safe to destroy after its agent.
class NIXL_API TransferHandle {
  public:
    TransferHandle() = default;
    TransferHandle(std::weak_ptr<detail::AgentImpl> agent, HandleId id);
    TransferHandle(TransferHandle&& other) noexcept;
    TransferHandle& operator=(TransferHandle&& other) noexcept;
    TransferHandle(const TransferHandle&) = delete;
    TransferHandle& operator=(const TransferHandle&) = delete;
    ~TransferHandle();

    HandleId id() const noexcept { return id_; }
    explicit operator bool() const noexcept { return id_ != 0; }
    // Gives the id away; the caller releases it with Agent::releaseTransfer(id).
    HandleId detach() noexcept;

  private:
    std::weak_ptr<detail::AgentImpl> agent_;
    HandleId id_ = 0;
};

// Owns one prepared descriptor list of one side; the destructor releases it. Transfers made from
// it stay valid.
class NIXL_API PreparedList {
  public:
    PreparedList() = default;
    PreparedList(std::weak_ptr<detail::AgentImpl> agent, HandleId id);
    PreparedList(PreparedList&& other) noexcept;
    PreparedList& operator=(PreparedList&& other) noexcept;
    PreparedList(const PreparedList&) = delete;
    PreparedList& operator=(const PreparedList&) = delete;
    ~PreparedList();

    HandleId id() const noexcept { return id_; }
    HandleId detach() noexcept;

  private:
    std::weak_ptr<detail::AgentImpl> agent_;
    HandleId id_ = 0;
};

// Owns one registration; the destructor deregisters it.
class NIXL_API RegistrationHandle {
  public:
    RegistrationHandle() = default;
    RegistrationHandle(std::weak_ptr<detail::AgentImpl> agent,
                       std::vector<RegistrationList> lists,
                       std::vector<std::string> backends);
    RegistrationHandle(RegistrationHandle&& other) noexcept;
    RegistrationHandle& operator=(RegistrationHandle&& other) noexcept;
    RegistrationHandle(const RegistrationHandle&) = delete;
    RegistrationHandle& operator=(const RegistrationHandle&) = delete;
    ~RegistrationHandle();

    const std::vector<RegistrationList>& lists() const noexcept { return lists_; }
    // Deregisters now and reports what stands in the way; afterwards the handle is empty.
    Status release();
    // Gives the registration away: nothing is deregistered.
    void forget() noexcept;

  private:
    std::weak_ptr<detail::AgentImpl> agent_;
    std::vector<RegistrationList> lists_;
    std::vector<std::string> backends_;
};

}  // namespace nixl
