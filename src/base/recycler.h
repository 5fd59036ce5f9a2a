// Memory for objects that come and go one after the other, such as what each post of a transfer
// needs: freed blocks are kept and given to the next object, so that only the first one allocates.
// Thread-safe; a block may be freed by any thread, also after everybody else has forgotten the
// recycler.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace nixl::base {

// Keeps blocks of one size, which the first object decides. REQUIRES: no alignment beyond new's.
class Recycler {
  public:
    Recycler() = default;
    ~Recycler() {
        for (std::atomic<void*>& kept : kept_) {
            ::operator delete(kept.load(std::memory_order_acquire));
        }
    }
    Recycler(const Recycler&) = delete;
    Recycler& operator=(const Recycler&) = delete;

    void* take(size_t size) {
        size_t unset = 0;
        if (size_.compare_exchange_strong(unset, size) || unset == size) {
            for (std::atomic<void*>& kept : kept_) {
                if (void* const block = kept.exchange(nullptr, std::memory_order_acquire)) {
                    return block;
                }
            }
        }
        return ::operator new(size);
    }
    void give(void* block, size_t size) noexcept {
        if (size == size_.load()) {
            for (std::atomic<void*>& kept : kept_) {
                void* none = nullptr;
                if (kept.compare_exchange_strong(none, block, std::memory_order_release)) {
                    return;
                }
            }
        }
        ::operator delete(block);
    }

  private:
    std::atomic<size_t> size_{0};
    std::array<std::atomic<void*>, 4> kept_{};
};

template <typename T>
class RecyclingAllocator {
  public:
    using value_type = T;  // NOLINT(readability-identifier-naming): what allocators must call it
    explicit RecyclingAllocator(std::shared_ptr<Recycler> recycler)
        : recycler_(std::move(recycler)) {}
    template <typename U>
    // NOLINTNEXTLINE(google-explicit-constructor): allocators are converted
    RecyclingAllocator(const RecyclingAllocator<U>& other) : recycler_(other.recycler()) {}

    T* allocate(size_t count) { return static_cast<T*>(recycler_->take(count * sizeof(T))); }
    void deallocate(T* block, size_t count) noexcept { recycler_->give(block, count * sizeof(T)); }
    const std::shared_ptr<Recycler>& recycler() const { return recycler_; }
    template <typename U>
    bool operator==(const RecyclingAllocator<U>& other) const {
        return recycler_ == other.recycler();
    }

  private:
    std::shared_ptr<Recycler> recycler_;
};

// As std::make_shared.
template <typename T, typename... Arguments>
std::shared_ptr<T> makeRecycled(const std::shared_ptr<Recycler>& recycler,
                                Arguments&&... arguments) {
    return std::allocate_shared<T>(RecyclingAllocator<T>(recycler),
                                   std::forward<Arguments>(arguments)...);
}

}  // namespace nixl::base
