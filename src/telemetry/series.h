// Counters of transfers, one series for each backend, lane, peer and direction. Each thread counts
// in a shard of its own, without a locked instruction; who reads adds the shards up.
//
// Threads: every call is safe from any thread. posted() and ended() take no lock and, after a
// thread's first in a series, allocate nothing.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nixl/telemetry.h"

#include "base/mutex.h"
#include "telemetry/slots.h"

namespace nixl::telemetry {

enum class End : uint8_t { DONE, FAILED, CANCELED };

using Counter = std::atomic<uint64_t>;

struct alignas(64) Shard {
    Counter posts{0};
    Counter bytes{0};
    Counter nanoseconds{0};
    std::array<Counter, 3> ends{};
    std::array<Counter, kTimeBuckets> times{};
    std::array<Counter, kSizeBuckets> sizes{};
};

// Gives shards, from memory of the system in larger pieces; those of a series that is gone are
// used again.
class ShardStore {
  public:
    ShardStore() = default;
    ~ShardStore();
    ShardStore(const ShardStore&) = delete;
    ShardStore& operator=(const ShardStore&) = delete;
    Shard* take() noexcept;  // all zero; null where the system has no memory
    void giveBack(Shard* shard) noexcept;

  private:
    static constexpr size_t kPiece = 64;  // shards
    Mutex mutex_;
    std::vector<Shard*> pieces_ NIXL_GUARDED_BY(mutex_);
    std::vector<Shard*> free_ NIXL_GUARDED_BY(mutex_);
};

class Series {
  public:
    Series(std::shared_ptr<ShardStore> store,
           std::string_view backend,
           std::string_view lane,
           std::string_view peer,
           OpType op);
    ~Series();
    Series(const Series&) = delete;
    Series& operator=(const Series&) = delete;

    void posted() noexcept;
    // `bytes` and `time` count where it is DONE.
    void ended(End end, uint64_t bytes, std::chrono::nanoseconds time) noexcept;
    void error(ErrorCode code) noexcept;

    TransferCounts read() const;
    // Takes over what another has counted. REQUIRES: nobody else counts in that one.
    void add(const TransferCounts& other) noexcept;

    const std::string backend;
    const std::string lane;
    const std::string peer;
    const OpType op;

  private:
    Shard* shard(unsigned& slot) noexcept;
    static constexpr size_t kCodes = 32;

    const std::shared_ptr<ShardStore> store_;
    std::array<std::atomic<Shard*>, kSlots> shards_{};
    Shard shared_;
    std::array<Counter, kCodes> errors_{};
};

using SeriesPtr = std::shared_ptr<Series>;

// The bucket of a histogram: the first whose bound is not less, else the last.
size_t timeBucket(std::chrono::nanoseconds time) noexcept;
size_t sizeBucket(uint64_t bytes) noexcept;

class SeriesTable {
  public:
    // The series of these; where there are kMostSeries, that of kOtherPeers.
    SeriesPtr find(std::string_view backend,
                   std::string_view lane,
                   std::string_view peer,
                   OpType op);
    std::vector<TransferCounts> read() const;

  private:
    struct Key {
        std::string_view backend, lane, peer;  // of the series itself
        OpType op;
        bool operator==(const Key&) const = default;
    };
    struct Hash {
        size_t operator()(const Key& key) const noexcept;
    };
    const SeriesPtr& enter(const Key& key) NIXL_REQUIRES(mutex_);
    bool makeRoom() NIXL_REQUIRES(mutex_);

    mutable Mutex mutex_;
    std::shared_ptr<ShardStore> store_ = std::make_shared<ShardStore>();
    std::unordered_map<Key, SeriesPtr, Hash> series_ NIXL_GUARDED_BY(mutex_);
    uint64_t refused_ NIXL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nixl::telemetry
