// Starting the core's own threads: all signals blocked, named, no exception. Also tells a forked
// child from the process that made an object. Thread-safe.
#pragma once

#include <functional>
#include <thread>

#include <sys/types.h>

#include "nixl/error.h"

namespace nixl::base {

enum class Priority : uint8_t { NORMAL, BATCH };

// `name` is cut at 15 bytes. BATCH threads yield the processor to those that wait for them.
Result<std::thread> startThread(const char* name, Priority priority, std::function<void()> body);

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
