// Starting the core's own threads: all signals blocked, named, no exception. Also tells a forked
// child from the process that made an object. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>

#include <sys/types.h>

#include "nixl/error.h"

namespace nixl::base {

// RESPONSIVE threads answer somebody: they take short turns, and get a busy processor as soon as
// they wake. NORMAL ones are as the system makes them.
enum class Priority : uint8_t { NORMAL, RESPONSIVE };

// `name` is cut at 15 bytes.
Result<std::thread> startThread(const char* name, Priority priority, std::function<void()> body);

// What costs more than this many bytes of copying is bulk.
inline constexpr uint64_t kBulkBytes = 256 << 10;

// The calling RESPONSIVE thread begins (or ends) bulk work: until its end it has batch priority, so
// it yields to all who answer somebody. Costs a system call where that changes anything; does
// nothing on other threads.
void workInBulk(bool bulk);

// Bulk work from here to the end of the scope.
class BulkScope {
  public:
    explicit BulkScope(bool bulk = true) : bulk_(bulk) {
        if (bulk_) {
            workInBulk(true);
        }
    }
    ~BulkScope() {
        if (bulk_) {
            workInBulk(false);
        }
    }
    BulkScope(const BulkScope&) = delete;
    BulkScope& operator=(const BulkScope&) = delete;

  private:
    const bool bulk_;
};

// Remembers the process that owns threads. A forked child has none of them: there an owner must
// neither join nor lock what they might have held.
class ProcessMark {
  public:
    ProcessMark();
    bool forked() const noexcept;

  private:
    pid_t pid_;
};

}  // namespace nixl::base
