// io_uring: one ring, set up and used by the engine's thread alone (SINGLE_ISSUER, DEFER_TASKRUN
// where the kernel has them). The wake descriptor is polled in the ring.
#include "inline_queue.h"
#include "loop_engine.h"

#ifdef NIXL_POSIX_URING
#include <algorithm>
#include <cerrno>
#include <cstring>

#include <liburing.h>
#include <poll.h>
#include <sys/mman.h>

#include "uring_request.h"

// Newer than the oldest headers this compiles with.
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

namespace nixl::posix {

namespace {

constexpr uint64_t kWake = UINT64_MAX;
constexpr unsigned kBufferEntries = 1024;        // sparse table; the kernel allows 16384
constexpr uint64_t kMaxBufferSize = 1ULL << 30;  // the kernel's limit for one

class UringEngine final : public LoopEngine {
  public:
    using LoopEngine::LoopEngine;

    const char* name() const override { return "io_uring"; }
    OpenInline inlineQueue() const override { return &openSmallQueue; }

    int registerBuffer(void* address, uint64_t size) override {
        if (!haveTable_) {
            return -ENOTSUP;
        }
        if (size > kMaxBufferSize) {
            return -EFBIG;
        }
        int result = -ENXIO;
        runOnThread([&] { result = update(-1, address, size); });
        return result;
    }

    void unregisterBuffer(int index) override {
        runOnThread([&] { update(index, nullptr, 0); });
    }

  protected:
    std::string openQueue() override {
        unsigned entries = 8;
        while (entries < options().depth + 1) {
            entries *= 2;
        }
        int error = open(entries, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
        if (error == EINVAL) {
            error = open(entries, 0);
        }
        if (error != 0) {
            return error == EPERM || error == ENOSYS
                       ? "io_uring_setup: " + errnoText(error) +
                             " (forbidden here, often by a "
                             "container's seccomp profile or kernel.io_uring_disabled)"
                       : "io_uring_setup: " + errnoText(error);
        }
        io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
        const bool usable = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ) &&
                            io_uring_opcode_supported(probe, IORING_OP_WRITEV);
        io_uring_free_probe(probe);
        if (!usable) {
            return "io_uring: the kernel is too old (needs 5.6)";
        }
        if (io_uring_register_buffers_sparse(&ring_, kBufferEntries) == 0) {
            usedBuffers_.assign(kBufferEntries, false);
            haveTable_ = true;
        }
        armWake();
        return {};
    }

    void closeQueue() override {
        if (open_) {
            io_uring_queue_exit(&ring_);
        }
    }

    void enqueue(Entry& entry) override {
        const IoRequest& request = entry.request;
        io_uring_sqe* sqe = nextEntry();
        const auto* vectors = request.vectors;
        const bool write = request.op == IoOp::WRITE;
        if (request.fixedBuffer >= 0) {
            const auto size = static_cast<unsigned>(vectors->iov_len);
            write ? io_uring_prep_write_fixed(sqe, request.fd, vectors->iov_base, size,
                                              request.offset, request.fixedBuffer)
                  : io_uring_prep_read_fixed(sqe, request.fd, vectors->iov_base, size,
                                             request.offset, request.fixedBuffer);
        } else {
            prepareEntry(sqe, request);
        }
        sqe->user_data = entry.index;
    }

    void step(bool wait) override {
        // Without waiting, work that the kernel deferred to us still has to run.
        const int result =
            wait ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit_and_get_events(&ring_);
        (void)result;  // EINTR and EAGAIN: what could not be submitted stays for the next step
        unsigned head = 0;
        unsigned count = 0;
        io_uring_cqe* cqe = nullptr;
        bool woken = false;
        io_uring_for_each_cqe(&ring_, head, cqe) {
            ++count;
            if (cqe->user_data == kWake) {
                woken = true;
            } else {
                finished(entryAt(cqe->user_data), cqe->res);
            }
        }
        io_uring_cq_advance(&ring_, count);
        if (woken) {
            drainWake();
            armWake();
        }
    }

  private:
    int open(unsigned entries, unsigned flags) {
        io_uring_params parameters{};
        parameters.flags = flags | IORING_SETUP_CLAMP;
        const int result = io_uring_queue_init_params(entries, &ring_, &parameters);
        open_ = result == 0;
        if (open_) {
            io_uring_ring_dontfork(&ring_);
        }
        return -result;
    }

    io_uring_sqe* nextEntry() {
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
        while (sqe == nullptr) {  // the ring holds every entry: only after a refused submission
            io_uring_submit(&ring_);
            sqe = io_uring_get_sqe(&ring_);
        }
        return sqe;
    }

    void armWake() {
        io_uring_sqe* sqe = nextEntry();
        io_uring_prep_poll_add(sqe, wakeFd(), POLLIN);
        sqe->user_data = kWake;
    }

    // Puts a buffer into a free place (index < 0) or empties place `index`.
    int update(int index, void* address, uint64_t size) {
        if (index < 0) {
            const auto place = std::find(usedBuffers_.begin(), usedBuffers_.end(), false);
            if (place == usedBuffers_.end()) {
                return -ENOSPC;
            }
            index = static_cast<int>(place - usedBuffers_.begin());
        }
        iovec vector{address, size};
        __u64 tag = 0;
        const int result = io_uring_register_buffers_update_tag(
            &ring_, static_cast<unsigned>(index), &vector, &tag, 1);
        if (result < 0) {
            return result;
        }
        usedBuffers_[static_cast<size_t>(index)] = address != nullptr;
        return index;
    }

    io_uring ring_{};
    bool open_ = false;
    bool haveTable_ = false;
    std::vector<bool> usedBuffers_;
};

}  // namespace

EngineOrReason makeUringEngine(const EngineOptions& options, RequestSource& source) {
    auto engine = std::make_unique<UringEngine>(options, source);
    if (std::string reason = engine->start("nixl-posix-ring"); !reason.empty()) {
        return {nullptr, reason};
    }
    return {std::move(engine), {}};
}

}  // namespace nixl::posix

#else

namespace nixl::posix {

EngineOrReason makeUringEngine(const EngineOptions& /*options*/, RequestSource& /*source*/) {
    return {nullptr, "built without liburing"};
}

}  // namespace nixl::posix

#endif
