// What moves the bytes of posted transfers: threads with cuFile's plain calls (GDS_MT), or batches
// (GDS). Owned by the backend.
//
// Threads: thread-safe; an engine has threads of its own.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <pthread.h>

#include "nixl/device.h"
#include "nixl/services.h"

#include "job.h"

namespace nixl::gds {

struct EngineOptions {
    unsigned threads = 1;        // GDS_MT
    unsigned batches = 1;        // GDS: at most so many at a time
    unsigned batchRequests = 1;  // GDS: requests of one batch
    double batchSeconds = 0;     // GDS: without an event, then they count as lost
};

// Threads that end when their loop does. The owner calls stop() before its own end.
class Threads {
  public:
    // 0 or an errno. All signals are blocked in it.
    int start(const char* name, std::function<void()> body);
    // Waits for all to end, or for so long; then they are left to themselves.
    bool join(double seconds);

  private:
    struct Start;
    static void* run(void* argument);

    std::mutex mutex_;
    std::condition_variable ended_;
    unsigned running_ = 0;
    std::vector<pthread_t> threads_;
};

// The context of the requests' GPU for the calling thread; host memory needs none.
class GpuScope {
  public:
    GpuScope(PluginServices& services, int device) {
        if (device >= 0) {
            scope_.emplace(services.devices(), device);
        }
    }
    Status status() const { return scope_ ? scope_->status() : Status(); }

  private:
    std::optional<DeviceScope> scope_;
};

class Engine {
  public:
    virtual ~Engine() = default;
    // An empty text, or why it cannot begin.
    virtual std::string start() = 0;
    virtual void post(Job& job) = 0;
    // Ends what is not under way as canceled and waits `seconds` for the rest. False: threads are
    // still inside cuFile, and this object must stay.
    virtual bool stop(double seconds) = 0;
    // For explain().
    virtual std::string describe() const = 0;

    std::shared_ptr<FileTable> keep;  // stays with an engine that is left to itself
};

std::unique_ptr<Engine> makeThreadEngine(const CuFileDriver& driver,
                                         PluginServices& services,
                                         const EngineOptions& options);
std::unique_ptr<Engine> makeBatchEngine(const CuFileDriver& driver,
                                        PluginServices& services,
                                        const EngineOptions& options);

}  // namespace nixl::gds
