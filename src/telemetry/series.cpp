// See series.h.
#include "telemetry/series.h"

#include <algorithm>
#include <bit>
#include <new>

#include <sys/mman.h>

namespace nixl::telemetry {
namespace {

// Only the owner of a shard writes to it, so it needs no locked instruction; the shared one does.
void count(Counter& counter, uint64_t amount, bool own) noexcept {
    if (own) {
        counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
    } else {
        counter.fetch_add(amount, std::memory_order_relaxed);
    }
}

uint64_t of(const Counter& counter) noexcept {
    return counter.load(std::memory_order_relaxed);
}

void read(const Shard& shard, TransferCounts& out) noexcept {
    // Ends first: what is read as ended is then read as posted too.
    out.done += of(shard.ends[static_cast<size_t>(End::DONE)]);
    out.failed += of(shard.ends[static_cast<size_t>(End::FAILED)]);
    out.canceled += of(shard.ends[static_cast<size_t>(End::CANCELED)]);
    out.bytes += of(shard.bytes);
    out.time += std::chrono::nanoseconds(of(shard.nanoseconds));
    for (size_t i = 0; i < kTimeBuckets; ++i) {
        out.times[i] += of(shard.times[i]);
    }
    for (size_t i = 0; i < kSizeBuckets; ++i) {
        out.sizes[i] += of(shard.sizes[i]);
    }
}

}  // namespace

size_t timeBucket(std::chrono::nanoseconds time) noexcept {
    const uint64_t ns = time.count() > 0 ? static_cast<uint64_t>(time.count()) : 0;
    const uint64_t us = (ns + 999) / 1000;
    return us <= 1 ? 0 : std::min<size_t>(std::bit_width(us - 1), kTimeBuckets - 1);
}

size_t sizeBucket(uint64_t bytes) noexcept {
    return bytes <= 64
               ? 0
               : std::min<size_t>((std::bit_width((bytes - 1) >> 6) + 1U) / 2, kSizeBuckets - 1);
}

ShardStore::~ShardStore() {
    for (Shard* const piece : pieces_) {
        munmap(piece, kPiece * sizeof(Shard));
    }
}

Shard* ShardStore::take() noexcept {
    const MutexLock lock(mutex_);
    if (free_.empty()) {
        void* const piece = mmap(nullptr, kPiece * sizeof(Shard), PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED) {
            return nullptr;
        }
        auto* const shards = static_cast<Shard*>(piece);
        try {
            pieces_.push_back(shards);
            free_.reserve(pieces_.size() * kPiece);  // so that giving back cannot fail
        } catch (const std::bad_alloc&) {
            if (!pieces_.empty() && pieces_.back() == shards) {
                pieces_.pop_back();
            }
            munmap(piece, kPiece * sizeof(Shard));
            return nullptr;
        }
        for (size_t i = kPiece; i-- > 0;) {
            free_.push_back(shards + i);
        }
    }
    Shard* const shard = free_.back();
    free_.pop_back();
    return new (shard) Shard;
}

void ShardStore::giveBack(Shard* shard) noexcept {
    const MutexLock lock(mutex_);
    free_.push_back(shard);
}

Series::Series(std::shared_ptr<ShardStore> store,
               std::string_view backend,
               std::string_view lane,
               std::string_view peer,
               OpType op)
    : backend(backend), lane(lane), peer(peer), op(op), store_(std::move(store)) {}

Series::~Series() {
    for (const auto& slot : shards_) {
        if (Shard* const shard = slot.load(std::memory_order_acquire); shard != nullptr) {
            store_->giveBack(shard);
        }
    }
}

// The calling thread's; `slot` becomes kSlots where that is the shared one.
Shard* Series::shard(unsigned& slot) noexcept {
    slot = threadSlot();
    if (slot == kSlots) {
        return &shared_;
    }
    Shard* mine = shards_[slot].load(std::memory_order_acquire);
    if (mine == nullptr) {
        mine = store_->take();
        if (mine == nullptr) {
            slot = kSlots;
            return &shared_;
        }
        shards_[slot].store(mine, std::memory_order_release);
    }
    return mine;
}

void Series::posted() noexcept {
    unsigned slot = 0;
    Shard& counts = *shard(slot);
    count(counts.posts, 1, slot != kSlots);
}

void Series::ended(End end, uint64_t bytes, std::chrono::nanoseconds time) noexcept {
    unsigned slot = 0;
    Shard& counts = *shard(slot);
    const bool own = slot != kSlots;
    count(counts.ends[static_cast<size_t>(end)], 1, own);
    if (end == End::DONE) {
        count(counts.bytes, bytes, own);
        count(counts.nanoseconds, static_cast<uint64_t>(std::max<int64_t>(time.count(), 0)), own);
        count(counts.times[timeBucket(time)], 1, own);
        count(counts.sizes[sizeBucket(bytes)], 1, own);
    }
}

void Series::error(ErrorCode code) noexcept {
    const auto index = static_cast<size_t>(-static_cast<int>(code));
    errors_[std::min(index, kCodes - 1)].fetch_add(1, std::memory_order_relaxed);
}

TransferCounts Series::read() const {
    TransferCounts out;
    out.backend = backend;
    out.lane = lane;
    out.peer = peer;
    out.op = op;
    out.time = {};
    telemetry::read(shared_, out);
    for (const auto& slot : shards_) {
        if (const Shard* const shard = slot.load(std::memory_order_acquire); shard != nullptr) {
            telemetry::read(*shard, out);
        }
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    out.posts = of(shared_.posts);
    for (const auto& slot : shards_) {
        if (const Shard* const shard = slot.load(std::memory_order_acquire); shard != nullptr) {
            out.posts += of(shard->posts);
        }
    }
    // One thread's end may show before another's post.
    out.posts = std::max(out.posts, out.done + out.failed + out.canceled);
    for (size_t code = 0; code < kCodes; ++code) {
        if (const uint64_t errors = of(errors_[code]); errors != 0) {
            out.errors[static_cast<ErrorCode>(-static_cast<int>(code))] = errors;
        }
    }
    return out;
}

void Series::add(const TransferCounts& other) noexcept {
    count(shared_.posts, other.posts, false);
    count(shared_.bytes, other.bytes, false);
    count(shared_.nanoseconds, static_cast<uint64_t>(other.time.count()), false);
    count(shared_.ends[static_cast<size_t>(End::DONE)], other.done, false);
    count(shared_.ends[static_cast<size_t>(End::FAILED)], other.failed, false);
    count(shared_.ends[static_cast<size_t>(End::CANCELED)], other.canceled, false);
    for (size_t i = 0; i < kTimeBuckets; ++i) {
        count(shared_.times[i], other.times[i], false);
    }
    for (size_t i = 0; i < kSizeBuckets; ++i) {
        count(shared_.sizes[i], other.sizes[i], false);
    }
    for (const auto& [code, errors] : other.errors) {
        const auto index = static_cast<size_t>(-static_cast<int>(code));
        count(errors_[std::min(index, kCodes - 1)], errors, false);
    }
}

size_t SeriesTable::Hash::operator()(const Key& key) const noexcept {
    const std::hash<std::string_view> hash;
    // Backend and lane are few: the peer tells most apart.
    return hash(key.peer) ^ (hash(key.lane) << 1) ^ (key.backend.size() << 2) ^
           static_cast<size_t>(key.op);
}

const SeriesPtr& SeriesTable::enter(const Key& key) {
    auto made = std::make_shared<Series>(store_, key.backend, key.lane, key.peer, key.op);
    const Key own{made->backend, made->lane, made->peer, made->op};
    return series_.emplace(own, std::move(made)).first->second;
}

// Counts what nobody counts in any more with the others. Looks seldom: it looks at all.
bool SeriesTable::makeRoom() {
    constexpr uint64_t kSeldom = 64;
    if (refused_++ % kSeldom != 0) {
        return false;
    }
    std::vector<SeriesPtr> idle;
    for (const auto& [key, series] : series_) {
        if (series.use_count() == 1 && key.peer != kOtherPeers) {
            idle.push_back(series);
        }
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    for (const SeriesPtr& series : idle) {
        const Key others{series->backend, series->lane, kOtherPeers, series->op};
        const auto found = series_.find(others);
        const SeriesPtr& rest = found != series_.end() ? found->second : enter(others);
        rest->add(series->read());
        series_.erase({series->backend, series->lane, series->peer, series->op});
    }
    return !idle.empty();
}

SeriesPtr SeriesTable::find(std::string_view backend,
                            std::string_view lane,
                            std::string_view peer,
                            OpType op) {
    const MutexLock lock(mutex_);
    Key key{backend, lane, peer, op};
    auto found = series_.find(key);
    if (found != series_.end()) {
        return found->second;
    }
    if (series_.size() >= kMostSeries && !makeRoom()) {
        key.peer = kOtherPeers;
        found = series_.find(key);
        if (found != series_.end()) {
            return found->second;
        }
    }
    return enter(key);
}

std::vector<TransferCounts> SeriesTable::read() const {
    const MutexLock lock(mutex_);
    std::vector<TransferCounts> out;
    out.reserve(series_.size());
    for (const auto& [key, series] : series_) {
        out.push_back(series->read());
    }
    std::sort(out.begin(), out.end(), [](const TransferCounts& a, const TransferCounts& b) {
        return std::tie(a.backend, a.lane, a.peer, a.op) <
               std::tie(b.backend, b.lane, b.peer, b.op);
    });
    return out;
}

}  // namespace nixl::telemetry
