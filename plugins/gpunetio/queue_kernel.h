// Posting to a send queue and waiting for what it completes, by the threads of one block. Compiled
// by nvcc for GPUs (queue_kernel.cu), and by the host's compiler for the tests' stand-in, which
// gives the primitives below a meaning of its own.
//
//   GPUNETIO_DEVICE         what functions begin with
//   gpunetioThread()        the number of this thread, gpunetioThreads() how many there are
//   gpunetioBarrier()       all threads of the block meet
//   gpunetioFence()         what was written before is seen by the adapter and the host first
//   gpunetioAt<T>(address)  a pointer of this processor
#pragma once

#include "queue_abi.h"

namespace nixl::gpunetio {

GPUNETIO_DEVICE inline uint32_t swap32(uint32_t value) {
    return value >> 24 | (value >> 8 & 0xff00) | (value << 8 & 0xff0000) | value << 24;
}
GPUNETIO_DEVICE inline uint64_t swap64(uint64_t value) {
    return static_cast<uint64_t>(swap32(static_cast<uint32_t>(value))) << 32 |
           swap32(static_cast<uint32_t>(value >> 32));
}

// Control, remote address and data segment of a one-sided request, with a completion.
GPUNETIO_DEVICE inline void writeRequest(const SendQueue& queue,
                                         uint64_t index,
                                         uint8_t opcode,
                                         const Piece& piece) {
    auto* const at =
        gpunetioAt<volatile uint64_t>(queue.requests + (index & (queue.slots - 1)) * kWqeSize);
    constexpr uint32_t kSegments = 3;  // of 16 bytes
    constexpr uint32_t kCompletion = 8;
    const uint32_t head = swap32(static_cast<uint32_t>(index & 0xffff) << 8 | opcode);
    const uint32_t number = swap32(queue.number << 8 | kSegments);
    at[0] = static_cast<uint64_t>(number) << 32 | head;
    at[1] = swap32(kCompletion);
    at[2] = swap64(piece.remote);
    at[3] = piece.remoteKey;
    at[4] = static_cast<uint64_t>(piece.localKey) << 32 | swap32(piece.size);
    at[5] = swap64(piece.local);
}

// Tells the adapter that requests up to `index` (without it) are there.
GPUNETIO_DEVICE inline void ring(const SendQueue& queue, uint64_t index) {
    gpunetioFence();
    gpunetioAt<volatile uint32_t>(queue.record)[1] = swap32(static_cast<uint32_t>(index & 0xffff));
    gpunetioFence();
    const uint64_t last = (index - 1) & (queue.slots - 1);
    *gpunetioAt<volatile uint64_t>(queue.doorbell) =
        *gpunetioAt<volatile uint64_t>(queue.requests + last * kWqeSize);
    gpunetioFence();
}

// Whether completion `index` is there; its syndrome where the request has failed.
GPUNETIO_DEVICE inline bool completed(const SendQueue& queue, uint64_t index, uint32_t& syndrome) {
    auto* const at =
        gpunetioAt<volatile uint8_t>(queue.completions + (index & (queue.slots - 1)) * kCqeSize);
    constexpr uint8_t kInvalid = 0xf;
    const uint8_t owned = at[63];
    const uint8_t opcode = owned >> 4;
    if (opcode == kInvalid || (owned & 1) != ((index & queue.slots) != 0 ? 1 : 0)) {
        return false;
    }
    gpunetioFence();
    if (opcode >= 0xd) {  // the requester's error, the responder's
        const uint32_t both = at[55] | static_cast<uint32_t>(at[54]) << 8;
        syndrome = both == 0 ? 0xff : both;
    }
    return true;
}

// `shared`: two words that the threads of the block have in common.
GPUNETIO_DEVICE inline void move(Job* job_pointer, uint64_t* shared) {
    volatile Job& job = *job_pointer;
    SendQueue* const queue_pointer = gpunetioAt<SendQueue>(job.queue);
    const SendQueue queue = *queue_pointer;
    const Piece* const pieces = gpunetioAt<const Piece>(job.pieces);
    const uint64_t count = job.count;
    const uint8_t opcode = static_cast<uint8_t>(job.opcode);
    const uint64_t first = queue.produced;
    uint64_t posted = 0;
    uint64_t seen = 0;      // the first thread's
    uint64_t finished = 0;  // likewise
    uint32_t wrong = 0;
    while (true) {
        if (gpunetioThread() == 0) {
            // All that is posted must have ended before this returns.
            while (seen < posted) {
                uint32_t syndrome = 0;
                if (!completed(queue, first + seen, syndrome)) {
                    // Half a ring more may go while the rest is under way.
                    if (posted - seen <= queue.slots / 2 && posted < count && wrong == 0 &&
                        job.stop == 0) {
                        break;
                    }
                    continue;
                }
                ++seen;
                finished += syndrome == 0 ? 1 : 0;
                wrong = wrong == 0 ? syndrome : wrong;
            }
            const bool more = posted < count && wrong == 0 && job.stop == 0;
            const uint64_t room = queue.slots - (posted - seen);
            const uint64_t left = count - posted;
            shared[0] = more ? (left < room ? left : room) : 0;
            shared[1] = more || seen < posted ? 1 : 0;
        }
        gpunetioBarrier();
        const uint64_t now = shared[0];
        const bool going = shared[1] != 0;
        if (!going) {
            break;
        }
        for (uint64_t i = gpunetioThread(); i < now; i += gpunetioThreads()) {
            writeRequest(queue, first + posted + i, opcode, pieces[posted + i]);
        }
        gpunetioFence();
        posted += now;
        gpunetioBarrier();
        if (gpunetioThread() == 0 && now != 0) {
            ring(queue, first + posted);
        }
    }
    if (gpunetioThread() == 0) {
        queue_pointer->produced = first + posted;
        job.finished = finished;
        job.syndrome = wrong;
        gpunetioFence();
        job.ended = 1;
    }
}

}  // namespace nixl::gpunetio
