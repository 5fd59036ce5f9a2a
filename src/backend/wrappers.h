// Wrappers of any backend: a trace of its calls, and injected faults. For tests and for finding
// out what happens in the field; without them no call passes through here. Thread rule: as
// nixl/backend.h.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "nixl/backend.h"
#include "nixl/plugin.h"
#include "nixl/services.h"

namespace nixl::backend {

// Which calls go wrong. Each kind counts its own calls and strikes every n-th, 0 never; the seed
// decides where the counting starts, whether a failure comes at once or later, and how much of a
// shortened transfer is moved, so equal seeds and equal calls give equal faults.
struct FaultPlan {
    uint64_t seed = 0;       // 0: drawn when the backend is wrapped; printed either way
    uint32_t refuse = 0;     // registerMemory, prepareTransfer, post and query return an error
    uint32_t fail = 0;       // a post moves nothing and ends FAILED with EIO
    uint32_t shorten = 0;    // a post moves a part and ends FAILED, naming the bytes
    uint32_t delay = 0;      // the end of a post is reported late, after at most delayTime
    uint32_t duplicate = 0;  // the end of a post is reported again: as failed, at once and later
    std::chrono::microseconds delayTime{10'000};

    bool any() const noexcept { return (refuse | fail | shorten | delay | duplicate) != 0; }
    // "seed=7,fail=100,delay=10,delay_time=5ms"; parse() reads what text() gives.
    std::string text() const;
    static Result<FaultPlan> parse(std::string_view text);
};

// Logs the plan with its seed as a warning: whoever meets a fault shall know that it was wanted.
std::unique_ptr<Backend> wrapFault(std::unique_ptr<Backend> backend, FaultPlan plan);

// Logs each call and each end of a post, with times, at INFO through `services`, which must
// outlive the backend.
std::unique_ptr<Backend> wrapTrace(std::unique_ptr<Backend> backend, PluginServices& services);

struct CreatedBackend {
    std::unique_ptr<Backend> backend;
    Parameters parameters;
};

// Checks `given`, creates the backend and wraps it where asked for: by the parameters nixl_fault
// and nixl_trace, else by the environment (NIXL_FAULT, NIXL_TRACE: docs/backend_guide.md). Warnings
// go to `services`. Whatever the plugin does wrong is a Status that names it.
Result<CreatedBackend> createBackend(const PluginTable& table,
                                     std::map<std::string, std::string> given,
                                     PluginServices& services);

}  // namespace nixl::backend
