// What the host and the kernel that posts to a send queue share. Plain data, laid out the same for
// the host's compiler and for nvcc. Fields of the adapter are big-endian, as it has them.
#pragma once

#include <stdint.h>

namespace nixl::gpunetio {

inline constexpr uint32_t kWqeSize = 64;  // one send request
inline constexpr uint32_t kCqeSize = 64;  // one completion
inline constexpr uint8_t kOpWrite = 0x08;
inline constexpr uint8_t kOpRead = 0x10;

// A queue pair's send side. One kernel at a time works on it.
struct SendQueue {
    uint64_t requests = 0;     // the ring of requests, memory of the GPU
    uint64_t completions = 0;  // the ring of completions, memory of the GPU
    uint64_t record = 0;       // the doorbell record, memory of the GPU
    uint64_t doorbell = 0;     // the adapter's register, as the GPU sees it
    uint32_t slots = 0;        // of both rings; a power of two
    uint32_t number = 0;       // of the queue pair
    uint64_t produced = 0;     // requests ever posted; kept between kernels
};

// One contiguous piece to move.
struct Piece {
    uint64_t local = 0;
    uint64_t remote = 0;
    uint32_t size = 0;
    uint32_t localKey = 0;   // big-endian
    uint32_t remoteKey = 0;  // big-endian
    uint32_t unused = 0;
};

// One run of the kernel. In page-locked memory of the host, which the GPU sees at its address.
struct Job {
    uint64_t queue = 0;   // SendQueue
    uint64_t pieces = 0;  // Piece[count]
    uint64_t count = 0;
    uint32_t opcode = 0;
    uint32_t stop = 0;      // set by the host: post nothing more
    uint64_t finished = 0;  // pieces that the adapter has completed well
    uint32_t syndrome = 0;  // of the first that failed: syndrome | vendor's << 8
    uint32_t ended = 0;     // set last
};

}  // namespace nixl::gpunetio
