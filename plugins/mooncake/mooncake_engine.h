// One engine of the library: its transport, name, memory, segments and batches. Calls are for any
// thread; those marked so may block for seconds.
#pragma once

#include <chrono>
#include <csignal>
#include <deque>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include <sys/types.h>
#include <unistd.h>

#include "nixl/error.h"

#include "mooncake_library.h"

namespace nixl::mooncake {

struct EngineOptions {
    std::string protocol;              // "tcp", "rdma"
    std::string host;                  // where peers reach it
    std::vector<std::string> devices;  // of rdma; empty: all
};

class Engine {
  public:
    // May block. Its threads block all signals, as those of the core do.
    static Result<std::shared_ptr<Engine>> create(const MooncakeLibrary& library,
                                                  const EngineOptions& options);
    ~Engine();  // as end()
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const MooncakeLibrary& library() const { return library_; }
    // By which peers open its segment: "10.0.0.1:15428".
    const std::string& name() const { return name_; }
    // May block. Whether the library does what its header says, tried on memory of ours.
    Status tryItself();

    Status registerMemory(uint64_t address, uint64_t size, const std::string& location);
    void unregisterMemory(uint64_t address);

    // May block.
    Result<int32_t> openSegment(const std::string& name);
    void closeSegment(int32_t segment);

    // A batch of requests, all submitted at once. On an error some may have been begun: only the
    // end of this engine tells that they are over.
    Result<uint64_t> submit(std::vector<EngineRequest>& requests);
    // Of one request. False: not yet. (The bytes that the engine tells may be those of a moment
    // ago.)
    bool ended(uint64_t batch, size_t index, bool& good);
    // When all have ended. The memory is given back a little later: the engine's threads may still
    // look at it for a moment.
    void release(uint64_t batch, size_t requests);

    // May block for some seconds. Afterwards no byte moves any more, and nothing ends. False: a
    // call is in it that does not come back.
    bool end();

  private:
    Engine(const MooncakeLibrary& library, EngineOptions options)
        : library_(library), options_(std::move(options)) {}
    bool openSafely(Status& status);
    Status open();
    Status install();
    void freeOld(bool all);

    struct Released {
        uint64_t batch;
        size_t requests;
        std::chrono::steady_clock::time_point when;
    };

    const MooncakeLibrary& library_;
    const EngineOptions options_;
    const pid_t process_ = getpid();
    std::string name_;

    mutable std::shared_timed_mutex alive_;  // shared by calls, alone by end()
    void* engine_ = nullptr;                 // guarded by alive_
    std::mutex releasedMutex_;
    std::deque<Released> released_;  // guarded by releasedMutex_
    size_t releasedRequests_ = 0;    // guarded by releasedMutex_
};

// Blocks all signals for the calling thread, and with it for the threads it makes.
class NoSignals {
  public:
    NoSignals();
    ~NoSignals();
    NoSignals(const NoSignals&) = delete;
    NoSignals& operator=(const NoSignals&) = delete;

  private:
    sigset_t before_;
};

}  // namespace nixl::mooncake
