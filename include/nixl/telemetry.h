// What an agent counts of its transfers, always: Agent::telemetry(). Values, of one moment.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nixl/descriptor.h"
#include "nixl/error.h"
#include "nixl/transfer.h"

namespace nixl {

// The upper bounds of histograms; the last bucket of each has what is more.
inline constexpr size_t kTimeBuckets = 26;
inline constexpr size_t kSizeBuckets = 16;
// 1 us, 2 us, 4 us … 16.8 s
constexpr std::chrono::microseconds timeBound(size_t bucket) {
    return std::chrono::microseconds(1ULL << bucket);
}
// 64 B, 256 B, 1 KiB … 16 GiB
constexpr uint64_t sizeBound(size_t bucket) {
    return 64ULL << (2 * bucket);
}

// Of the transfers one backend made through one lane with one peer in one direction.
struct TransferCounts {
    std::string backend;
    std::string lane;  // empty for storage
    std::string peer;  // empty for storage; kOtherPeers: those beyond kMostSeries
    OpType op = OpType::READ;
    uint64_t posts = 0;
    uint64_t done = 0;
    uint64_t failed = 0;
    uint64_t canceled = 0;
    uint64_t bytes = 0;             // of those done
    std::chrono::nanoseconds time;  // of those done, from post to the end
    std::array<uint64_t, kTimeBuckets> times{};
    std::array<uint64_t, kSizeBuckets> sizes{};
    std::map<ErrorCode, uint64_t> errors;  // posts that were refused among them
    uint64_t inProgress() const noexcept { return posts - done - failed - canceled; }
};

inline constexpr const char* kOtherPeers = "(others)";
// An agent tells so many combinations of backend, lane, peer and direction apart; what comes later
// is counted together, and so is what peers did that are gone once room is needed.
inline constexpr size_t kMostSeries = 1000;

struct RegisteredMemory {
    uint64_t regions = 0;
    uint64_t bytes = 0;
};

struct PendingTransfer {
    HandleId id = 0;
    std::string backend, lane, peer;
    OpType op = OpType::READ;
    std::chrono::nanoseconds age{0};
    uint64_t bytes = 0;
    uint64_t bytesDone = 0;
};

struct AgentTelemetry {
    std::string agent;
    std::string incarnation;  // 32 hexadecimal digits
    std::chrono::nanoseconds age{0};
    uint64_t prepared = 0;  // transfers there are
    uint64_t peers = 0;
    std::vector<TransferCounts> transfers;
    std::map<MemType, RegisteredMemory> registered;
    std::map<std::string, uint64_t> counters;  // Agent::stats()
    std::vector<PendingTransfer> pending;      // the oldest, at most 16
    std::string endpoint;                      // where the Prometheus exporter is read; empty: none
};

}  // namespace nixl
