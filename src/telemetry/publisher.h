// Tells what one agent counts: every interval, on a thread of its own, to a file for `nixl top` and
// to exporters. Whatever fails or hangs there touches nothing else. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "nixl/telemetry.h"

#include "telemetry/exporter.h"

namespace nixl::telemetry {

class Publisher {
  public:
    struct Plan {
        std::string agent;
        std::string id;
        std::string directory;
        std::chrono::milliseconds interval{1000};
        // Empty once the agent is gone.
        std::function<std::optional<AgentTelemetry>()> read;
    };
    // Has published when it returns (after a second at most): the agent is seen at once.
    static Result<std::unique_ptr<Publisher>> start(
        Plan plan, std::vector<std::unique_ptr<Exporter>> exporters);
    ~Publisher();  // as stop() with no time
    Publisher(const Publisher&) = delete;
    Publisher& operator=(const Publisher&) = delete;

    // Publishes a last time and takes the file away. An exporter that has not returned after
    // `patience` is left behind.
    void stop(std::chrono::milliseconds patience);  // by one thread
    std::string endpoint() const;
    uint64_t failures() const;

  private:
    struct Work;
    explicit Publisher(std::shared_ptr<Work> work) : work_(std::move(work)) {}

    const std::shared_ptr<Work> work_;
    std::thread thread_;
};

}  // namespace nixl::telemetry
