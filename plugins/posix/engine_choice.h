// Which engine serves O_DIRECT files: what the user named, else the best one the system permits.
#pragma once

#include "nixl/error.h"

#include "engine.h"

namespace nixl::posix {

enum class EngineKind : uint8_t { LINUX_AIO, IO_URING, POSIX_AIO, THREADS };

struct EngineChoice {
    std::unique_ptr<Engine> engine;
    std::string note;      // what was passed over and why; empty when the first one works
    bool asWished = true;  // false: the user named another one
};

// Starts `wished` or else, in this order, Linux AIO, io_uring, POSIX AIO, threads.
Result<EngineChoice> chooseEngine(const EngineKind* wished,
                                  const EngineOptions& options,
                                  RequestSource& source);

}  // namespace nixl::posix
