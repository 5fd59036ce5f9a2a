// What a backend of files or block devices runs on: one queue engine (O_DIRECT), one pool of
// threads (page cache), and a queue for small transfers. plugins/gusli has one too.
//
// Threads: start and stop by the owner, once; the rest as its parts say.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <unistd.h>

#include "nixl/services.h"

#include "engine_choice.h"
#include "inline_queue.h"
#include "job.h"

namespace nixl::posix {

// Everything that requests in flight may touch; outlives the backend when the kernel does not
// give them back.
struct Machinery {
    // `plugin` is static text.
    Machinery(const char* plugin,
              Devices& devices,
              size_t fd_capacity,
              size_t bounce_count,
              size_t bounce_bytes)
        : shared(plugin, devices, fd_capacity, bounce_count, bounce_bytes),
          queueScheduler(shared),
          poolScheduler(shared) {}

    // Starts the engines; what was passed over is logged.
    Status start(const EngineOptions& options,
                 std::optional<EngineKind> wished,
                 PluginServices& services);
    // Ends a machinery that may be null. What the kernel does not give back is left to it.
    static void stop(std::unique_ptr<Machinery> machinery, PluginServices& services);

    Shared shared;
    Scheduler queueScheduler;
    Scheduler poolScheduler;
    InlineQueue small{queueScheduler};
    std::unique_ptr<Engine> queue;  // null where threads do everything
    std::unique_ptr<Engine> pool;
    const pid_t process = getpid();
};

// Threads for the page cache: `wanted`, or by the processors where that is 0.
unsigned poolSize(int64_t wanted);

}  // namespace nixl::posix
