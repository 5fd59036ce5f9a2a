// The engines that carry I/O to the kernel, and what they ask of their owner. An engine pulls
// requests from a RequestSource whenever it has a free entry, so no queue of it can run dry or
// overflow however many transfers are posted. Nothing here knows the core.
//
// Threads: kick() may be called from any thread and never blocks; the RequestSource is called on
// the engine's own threads only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <sys/uio.h>

#include "errno_text.h"

namespace nixl::posix {

class File;
class KernelQueue;
class Memory;
class Part;
struct Bounce;

enum class IoOp : uint8_t { READ, WRITE };

inline constexpr unsigned kMaxVectors = 256;  // of one request; IOV_MAX is 1024

// One positional I/O as the kernel sees it. The engine reads the first group; the rest are notes
// of the source, which also moves the window forward when I/O was partial.
struct IoRequest {
    IoOp op = IoOp::READ;
    int fd = -1;
    int fixedBuffer = -1;  // index of the registered buffer around the only vector, or -1
    unsigned vectorCount = 0;
    uint64_t offset = 0;  // in the file, of the bytes that are left
    uint64_t length = 0;  // bytes left: the sum of the vectors
    iovec* vectors = nullptr;

    Part* part = nullptr;
    File* file = nullptr;
    Memory* memory = nullptr;  // registered, of the first byte; may be null
    bool careful = false;      // `user` cannot be pinned, hence the bounce buffer
    Bounce* bounce = nullptr;  // set: `user` holds where its bytes come from or go to
    int device = -1;           // of the memory: a GPU, or -1 for the host
    bool twin = false;         // goes through the file's buffered descriptor
    bool solo = false;         // one vector at a time, to find out which one fails
    bool refused = false;      // O_DIRECT was refused with EINVAL once already
    uint64_t planOffset = 0;   // of the first byte
    uint64_t total = 0;        // bytes at the start
    uint64_t done = 0;         // bytes behind the window
    uint64_t unitStart = 0;    // the bytes a failure would be reported for, from planOffset on
    uint64_t unitSize = 0;
    unsigned retries = 0;
    std::vector<iovec> user;  // memory in plan order; `vectors` points into it without a bounce
    iovec bounceVector{};

    // Drops `bytes` from the front of the window.
    void advance(uint64_t bytes);
    // Forgets everything but the capacity of `user`.
    void reset();
};

// Gives requests and takes their results.
class RequestSource {
  public:
    virtual ~RequestSource() = default;
    // Fills up to entries.size() requests, stopping after the one that reaches `byte_budget`;
    // returns how many. May open files and copy into bounce buffers.
    virtual size_t draw(std::span<IoRequest*> entries, uint64_t byte_budget) = 0;
    // Takes the bytes moved or -errno. True: `request` holds what is left, submit it again.
    virtual bool complete(IoRequest& request, int64_t result) = 0;
    // True when draw() may give something.
    virtual bool hasWork() const = 0;
    // True when the result no longer matters, so that the I/O may be left out.
    virtual bool abandoned(const IoRequest& request) const = 0;
};

struct EngineOptions {
    unsigned depth = 128;                     // requests in flight
    uint64_t maxBytesInFlight = 32ULL << 20;  // bounds what cancel has to wait for
    unsigned threads = 4;                     // of the thread pool
    const char* plugin = "POSIX";             // whose name messages bear
};

class Engine {
  public:
    virtual ~Engine() = default;
    virtual const char* name() const = 0;
    // False: one vector a request.
    virtual bool vectored() const { return true; }
    // The source has work.
    virtual void kick() = 0;
    // Ends the threads once nothing is in flight. False when that took longer than `seconds`: the
    // kernel still holds requests, and engine and source must not be destroyed.
    virtual bool stop(double seconds) = 0;
    // Makes [address, address + size) known to the kernel; an index for IoRequest::fixedBuffer or
    // -errno. The memory must not be in use by requests when it is taken back.
    virtual int registerBuffer(void* address, uint64_t size);
    virtual void unregisterBuffer(int index);
    // Opens a queue for small transfers beside this engine; null where it has none.
    using OpenInline = std::unique_ptr<KernelQueue> (*)(unsigned depth, int event);
    virtual OpenInline inlineQueue() const { return nullptr; }
    // The processor on which a thread last looked out for work, or -1: a caller who polls there
    // holds it up.
    virtual int lookoutCpu() const { return -1; }
};

// An engine, or why the system does not permit it.
struct EngineOrReason {
    std::unique_ptr<Engine> engine;
    std::string reason;
};

EngineOrReason makeThreadEngine(const EngineOptions& options, RequestSource& source);
EngineOrReason makeAioEngine(const EngineOptions& options, RequestSource& source);
EngineOrReason makeUringEngine(const EngineOptions& options, RequestSource& source);
EngineOrReason makePosixAioEngine(const EngineOptions& options, RequestSource& source);

}  // namespace nixl::posix
