// Objects behind 64-bit ids that the outside may use wrongly: an id that was released, or belongs
// to another table, is found out. Slots are never freed; one 64-bit atomic per slot packs
// generation, state and reference count, so a look-up is fetch_add, check, or undo.
//
// Threads: every call from any thread. `insert` locks; look-ups do not.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace nixl::base {

template <typename T>
class SlotTable {
  public:
    // A counted reference to a live object; empty where the id is none.
    class Ref {
      public:
        Ref() = default;
        Ref(SlotTable* table, uint32_t index, T* object)
            : table_(table), index_(index), object_(object) {}
        Ref(Ref&& other) noexcept
            : table_(other.table_),
              index_(other.index_),
              object_(std::exchange(other.object_, nullptr)) {}
        Ref& operator=(Ref&& other) noexcept {
            std::swap(table_, other.table_);
            std::swap(index_, other.index_);
            std::swap(object_, other.object_);
            return *this;
        }
        Ref(const Ref&) = delete;
        Ref& operator=(const Ref&) = delete;
        ~Ref() {
            if (object_ != nullptr) {
                table_->drop(index_);
            }
        }
        T* operator->() const noexcept { return object_; }
        T& operator*() const noexcept { return *object_; }
        explicit operator bool() const noexcept { return object_ != nullptr; }

      private:
        SlotTable* table_ = nullptr;
        uint32_t index_ = 0;
        T* object_ = nullptr;
    };

    // `dispose` gets each object after its last reference, outside any lock.
    using Dispose = void (*)(void* context, std::unique_ptr<T> object);
    explicit SlotTable(Dispose dispose = nullptr, void* context = nullptr)
        : dispose_(dispose), context_(context), seed_(std::random_device{}()) {}
    SlotTable(const SlotTable&) = delete;
    SlotTable& operator=(const SlotTable&) = delete;
    ~SlotTable() NIXL_NO_TSA {
        for (uint32_t i = 0; i < used_; ++i) {
            delete slot(i).object.load();
        }
        for (auto& block : blocks_) {
            delete[] block.load();
        }
    }

    // The id of the object, never 0; 0 where the table is full (16 M objects).
    uint64_t insert(std::unique_ptr<T> object) {
        uint32_t index = 0;
        {
            MutexLock lock(mutex_);
            if (!free_.empty()) {
                index = free_.back();
                free_.pop_back();
            } else if (used_ < kBlocks * kBlockSlots) {
                index = used_;
                if (index % kBlockSlots == 0) {
                    addBlock(index / kBlockSlots);  // throws where there is no memory
                }
                ++used_;
            } else {
                return 0;
            }
            ++live_;
        }
        Slot& at = slot(index);
        at.object.store(object.release(), std::memory_order_relaxed);
        // Stale look-ups may hold passing references: add, never store.
        const uint64_t word = at.word.fetch_add(kAlive | 1, std::memory_order_acq_rel);
        return (word & kGenerationMask) | (static_cast<uint64_t>(index) + 1);
    }

    Ref find(uint64_t id) {
        const uint64_t index = (id & kIndexMask) - 1;
        if (index >= kBlocks * kBlockSlots || (id & ~(kGenerationMask | kIndexMask)) != 0) {
            return {};
        }
        Slot* const block = blocks_[index / kBlockSlots].load(std::memory_order_acquire);
        if (block == nullptr) {
            return {};
        }
        Slot& at = block[index % kBlockSlots];
        const uint64_t word = at.word.fetch_add(1, std::memory_order_acq_rel);
        if ((word & kGenerationMask) == (id & kGenerationMask) && (word & kStateMask) == kAlive) {
            T* const object = at.object.load(std::memory_order_relaxed);
            return Ref(this, static_cast<uint32_t>(index), object);
        }
        drop(static_cast<uint32_t>(index));
        return {};
    }

    // Takes the id out of use; the object goes to `dispose` (or is deleted) with the last
    // reference. False where the id is none.
    bool retire(uint64_t id) {
        Ref held = find(id);
        if (!held) {
            return false;
        }
        const auto index = static_cast<uint32_t>((id & kIndexMask) - 1);
        Slot& at = slot(index);
        uint64_t word = at.word.load(std::memory_order_acquire);
        do {
            if ((word & kGenerationMask) != (id & kGenerationMask) ||
                (word & kStateMask) != kAlive) {
                return false;
            }
        } while (!at.word.compare_exchange_weak(word, (word & ~kStateMask) | kRetired,
                                                std::memory_order_acq_rel));
        drop(index);  // the reference of the table itself
        return true;
    }

    // The ids of all live objects.
    std::vector<uint64_t> ids() {
        std::vector<uint64_t> out;
        MutexLock lock(mutex_);
        for (uint32_t i = 0; i < used_; ++i) {
            const uint64_t word = slot(i).word.load(std::memory_order_acquire);
            if ((word & kStateMask) == kAlive) {
                out.push_back((word & kGenerationMask) | (static_cast<uint64_t>(i) + 1));
            }
        }
        return out;
    }

    size_t size() {
        MutexLock lock(mutex_);
        return live_;
    }

  private:
    // word: generation (24 bits), unused id bits, then state (2) and references (22).
    // id:   generation (24 bits), 16 bits of zero, index + 1 (24 bits).
    static constexpr uint64_t kIndexMask = (1ULL << 24) - 1;
    static constexpr uint64_t kGenerationStep = 1ULL << 40;
    static constexpr uint64_t kGenerationMask = ~(kGenerationStep - 1);
    static constexpr uint64_t kAlive = 1ULL << 32;
    static constexpr uint64_t kRetired = 2ULL << 32;
    static constexpr uint64_t kStateMask = 3ULL << 32;
    static constexpr uint64_t kReferenceMask = (1ULL << 32) - 1;
    static constexpr uint64_t kBlockSlots = 4096;
    static constexpr uint64_t kBlocks = 4096;

    struct Slot {
        std::atomic<uint64_t> word{0};
        std::atomic<T*> object{nullptr};
    };

    Slot& slot(uint32_t index) {
        return blocks_[index / kBlockSlots].load(std::memory_order_acquire)[index % kBlockSlots];
    }

    void addBlock(uint64_t which) NIXL_REQUIRES(mutex_) {
        free_.reserve((which + 1) * kBlockSlots);  // giving an index back needs no memory
        auto* block = new Slot[kBlockSlots];
        for (uint64_t i = 0; i < kBlockSlots; ++i) {
            // Tables start at different generations, so another table's id is very likely none.
            seed_ = seed_ * 6'364'136'223'846'793'005ULL + 1'442'695'040'888'963'407ULL;
            block[i].word.store(seed_ & kGenerationMask, std::memory_order_relaxed);
        }
        blocks_[which].store(block, std::memory_order_release);
    }

    void drop(uint32_t index) {
        Slot& at = slot(index);
        uint64_t word = at.word.fetch_sub(1, std::memory_order_acq_rel) - 1;
        if ((word & kReferenceMask) != 0 || (word & kStateMask) != kRetired) {
            return;
        }
        // The last one out; a passing look-up may come between, then it is the last one.
        T* const object = at.object.load(std::memory_order_relaxed);
        const uint64_t next = ((word & kGenerationMask) + kGenerationStep) & kGenerationMask;
        if (!at.word.compare_exchange_strong(word, next, std::memory_order_acq_rel)) {
            return;
        }
        at.object.store(nullptr, std::memory_order_relaxed);
        std::unique_ptr<T> owned(object);
        if (dispose_ != nullptr) {
            dispose_(context_, std::move(owned));
        }
        owned.reset();
        MutexLock lock(mutex_);
        --live_;
        free_.push_back(index);
    }

    Dispose dispose_;
    void* context_;
    Mutex mutex_;
    uint64_t seed_ NIXL_GUARDED_BY(mutex_);
    uint32_t used_ NIXL_GUARDED_BY(mutex_) = 0;
    size_t live_ NIXL_GUARDED_BY(mutex_) = 0;
    std::vector<uint32_t> free_ NIXL_GUARDED_BY(mutex_);
    std::atomic<Slot*> blocks_[kBlocks] = {};
};

}  // namespace nixl::base
