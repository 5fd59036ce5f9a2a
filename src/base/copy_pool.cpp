// See copy_pool.h.
#include "base/copy_pool.h"

#include <algorithm>

#include "base/threads.h"

namespace nixl::base {

std::shared_ptr<ChunkedJob> ChunkedJob::create(uint64_t chunks, Chunk chunk, Finished finished) {
    return std::shared_ptr<ChunkedJob>(
        new ChunkedJob(chunks, std::move(chunk), std::move(finished)));
}

ChunkedJob::ChunkedJob(uint64_t chunks, Chunk chunk, Finished finished)
    : chunks_(chunks), chunk_(std::move(chunk)), finished_(std::move(finished)), left_(chunks) {}

// Each worker calls the next one: the caller wakes a single thread, and meets none of them at the
// pool's lock.
void ChunkedJob::start(WorkPool& pool, unsigned workers, bool bulk) {
    const uint64_t limit = std::min<uint64_t>({workers, pool.threads(), chunks_});
    if (limit == 0) {
        return;
    }
    pool.run([self = shared_from_this(), &pool, bulk, left = static_cast<unsigned>(limit) - 1] {
        if (left > 0 && self->next_.load(std::memory_order_relaxed) < self->chunks_) {
            self->start(pool, left, bulk);
        }
        const BulkScope scope(bulk);
        while (self->progress()) {
        }
    });
}

bool ChunkedJob::progress() {
    // Compare-and-swap instead of an addition: nothing may count past the end while a stop
    // computes how much was left.
    uint64_t index = next_.load(std::memory_order_relaxed);
    do {
        if (index >= chunks_) {
            return false;
        }
    } while (!next_.compare_exchange_weak(index, index + 1, std::memory_order_acq_rel));
    if (!chunk_(index)) {
        stop();
    }
    leave(1);
    return true;
}

void ChunkedJob::stop() {
    const uint64_t begun = next_.exchange(chunks_, std::memory_order_acq_rel);
    if (begun < chunks_) {
        leave(chunks_ - begun);
    }
}

void ChunkedJob::leave(uint64_t chunks) {
    if (left_.fetch_sub(chunks, std::memory_order_acq_rel) != chunks) {
        return;
    }
    // What the callbacks hold (buffers, completions) goes with the job's end, not with the last
    // worker that has not yet run. Nobody else calls them any more.
    const Finished finished = std::move(finished_);
    chunk_ = nullptr;
    finished();
}

}  // namespace nixl::base
