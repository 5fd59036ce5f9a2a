// The engine that carries requests to 3FS: a ring for reads and one for writes. Whoever has
// something to submit does so (one at a time); a thread for each ring sleeps in the library until
// requests have ended, takes their ends and submits what is next.
//
// Threads: kick() and pumpSmall() from any thread; the rest by the owner.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include <pthread.h>

#include "posix/engine.h"
#include "posix/request_builder.h"
#include "shared_memory.h"
#include "usrbio.h"

namespace nixl::hf3fs {

// Registered memory; with an iov 3FS reaches it itself.
class RegisteredMemory final : public posix::Memory {
  public:
    std::shared_ptr<PublishedIov> published;
};

class RingEngine final : public posix::Engine {
  public:
    // Rings of `options.depth` entries on the 3FS at `mount`; `bounces` holds the bounce buffers.
    // Null with the reason where they cannot be made.
    static std::unique_ptr<RingEngine> make(const Library& library,
                                            const std::string& mount,
                                            const posix::EngineOptions& options,
                                            const Iov& bounces,
                                            posix::RequestSource& source,
                                            std::string& reason);
    ~RingEngine() override;
    RingEngine(const RingEngine&) = delete;
    RingEngine& operator=(const RingEngine&) = delete;

    const char* name() const override { return "USRBIO"; }
    bool vectored() const override { return false; }
    void kick() override;
    bool stop(double seconds) override;

    // Between the two kick() of this thread does nothing, since it submits itself at the end: a few
    // requests at once, without a thread in their way.
    static void beginSmall();
    void endSmall();

  private:
    struct Entry {
        posix::IoRequest request;
        unsigned tries = 0;  // of submitting it to a full ring
    };
    struct Ring {
        Ior ior;
        bool open = false;
        bool prepared = false;  // something to tell the library; by who submits
        std::atomic<int> inFlight{0};
        std::atomic<bool> asleep{false};
        std::mutex mutex;  // guards sleeping
        std::condition_variable changed;
        pthread_t thread{};
        bool started = false;
    };

    RingEngine(const Library& library,
               const posix::EngineOptions& options,
               const Iov& bounces,
               posix::RequestSource& source);
    std::string start(const std::string& mount);
    void pump(size_t most, uint64_t budget);
    void fill(size_t most, uint64_t budget);
    bool prepare(Entry& entry);
    void submit();
    void finish(Entry& entry, int64_t result);
    void reap(Ring& ring);
    bool sleep(Ring& ring, bool& linger);
    void work();
    void wake(Ring& ring);
    Ring& ringOf(const posix::IoRequest& request) {
        return rings_[request.op == posix::IoOp::READ ? 0 : 1];
    }

    const Library& library_;
    const posix::EngineOptions options_;
    const Iov& bounces_;
    posix::RequestSource& source_;
    std::array<Ring, 2> rings_;  // reads, writes
    std::atomic<bool> pumping_{false};
    std::atomic<bool> again_{false};
    std::atomic<bool> stop_{false};
    std::atomic<uint64_t> bytesInFlight_{0};

    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    std::vector<std::unique_ptr<Entry>> entries_;
    std::vector<Entry*> free_;
    std::vector<Entry*> againEntries_;  // partial I/O, or a ring that was full
    bool wanted_ = false;               // the submitter is to look
    unsigned running_ = 0;
    pthread_t submitter_{};
    bool submitterStarted_ = false;
};

}  // namespace nixl::hf3fs
