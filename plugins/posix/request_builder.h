// Turns a plan into requests: joins neighbours of one file into vectored I/O, splits what is
// larger than one request, and sorts bytes into those that go with O_DIRECT and those that go
// through the page cache.
//
// Threads: one at a time.
#pragma once

#include <atomic>
#include <cstdint>

#include <unistd.h>

#include "nixl/backend.h"

#include "bounce.h"
#include "engine.h"
#include "file.h"

namespace nixl::posix {

inline constexpr uint64_t kFixedChunk = 1ULL << 30;  // the kernel's limit for one buffer

// Registered memory. `fixedBuffers[i]` is the index of the i-th GiB of it, where registered.
class Memory : public BackendMemory {
  public:
    ~Memory() override;
    uint64_t address = 0;
    uint64_t size = 0;
    Engine* engine = nullptr;
    const pid_t process = getpid();
    std::vector<int> fixedBuffers;
    std::atomic<bool> cannotPin{false};  // the kernel refuses O_DIRECT with it: EFAULT
    bool staged = false;                 // the queue cannot reach it: copied always
};

struct BuildLimits {
    uint64_t mergeBytes = 1 << 20;  // of one request; a multiple of 4096
    bool vectored = true;
    uint64_t gatherBelow = 64 << 10;  // without vectors smaller pieces are gathered in a buffer
};

// Which bytes a builder gives; the rest is another builder's.
enum class Route : uint8_t {
    QUEUE,  // O_DIRECT
    POOL,   // through the page cache
};

class RequestBuilder {
  public:
    enum class Outcome : uint8_t {
        READY,
        END,
        WAIT,    // descriptors or bounce buffers are used up: call again after a completion
        FAILED,  // `request` names bytes that cannot be tried; `error` says why
    };

    RequestBuilder(const TransferPlan& plan, Route route, BuildLimits limits, BouncePool& bounces);

    // Starts again from the beginning; `epoch` numbers the post.
    void rewind(uint64_t epoch);
    Outcome next(IoRequest& request, int& error);
    bool exhausted() const { return left_.size == 0 && ended_; }
    // The first byte that has not become part of a request yet.
    uint64_t position() const { return left_.planOffset; }

  private:
    // The leading bytes of `left_` that go one way.
    struct Head {
        bool direct;
        bool staged;  // through a bounce buffer
        uint64_t size;
    };

    bool load();
    Head head() const;
    bool skipForeign();
    void take(IoRequest& request, uint64_t size);
    bool joins(const IoRequest& request, const Head& first, const Head& next) const;
    Outcome open(IoRequest& request, const Head& first, int& error);
    int device() const;
    void finish(IoRequest& request) const;
    void useFixedBuffer(IoRequest& request) const;
    Memory* memory() const {
        return static_cast<Memory*>(plan_.localRegions[left_.localRegion].memory);
    }
    bool cannotPin() const {
        const Memory* const registered = device() < 0 ? memory() : nullptr;
        return registered != nullptr && registered->cannotPin.load(std::memory_order_relaxed);
    }
    bool mustStage() const {
        const Memory* const registered = device() < 0 ? memory() : nullptr;
        return registered != nullptr && registered->staged;
    }
    void drop(uint64_t bytes);
    File& file() const {
        return *static_cast<File*>(plan_.remoteRegions[left_.remoteRegion].memory);
    }

    const TransferPlan& plan_;
    const Route route_;
    const BuildLimits limits_;
    BouncePool& bounces_;
    SegmentCursor cursor_;
    Segment left_;  // what is left of the current segment
    bool ended_ = false;
    uint64_t epoch_ = 0;
};

// Whether some bytes of `plan` are of `route`.
bool usesRoute(const TransferPlan& plan, Route route, uint64_t epoch);

}  // namespace nixl::posix
