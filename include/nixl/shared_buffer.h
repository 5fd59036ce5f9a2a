// Memory that other processes of this host can map, so that transfers between agents there copy
// once, with no system call. A buffer belongs to whoever holds it; its bytes are as any memory's.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "nixl/error.h"

namespace nixl {

// A mapped memory file of a fixed size: allocated whole, and unable to shrink. Move-only; the
// destructor gives the memory back (a peer that has mapped it does when it learns that it was
// deregistered). Deregister it first.
class NIXL_API SharedBuffer {
  public:
    SharedBuffer() = default;
    SharedBuffer(SharedBuffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)),
          file_(std::exchange(other.file_, -1)) {}
    SharedBuffer& operator=(SharedBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(file_, other.file_);
        return *this;
    }
    SharedBuffer(const SharedBuffer&) = delete;
    SharedBuffer& operator=(const SharedBuffer&) = delete;
    ~SharedBuffer();

    void* data() const noexcept { return data_; }
    size_t size() const noexcept { return size_; }
    std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(data_), size_}; }
    explicit operator bool() const noexcept { return data_ != nullptr; }

  private:
    friend NIXL_API SharedBuffer alloc(size_t size);
    void* data_ = nullptr;
    size_t size_ = 0;
    int file_ = -1;  // open as long as the buffer: agents find it by the memory
};

// `size` bytes of zeroed shareable memory. Throws Error: INVALID_PARAM for 0 bytes, BACKEND with
// errno ENOSPC where there is not that much memory (allocating more would not fail but wake the
// out-of-memory killer).
NIXL_API SharedBuffer alloc(size_t size);

}  // namespace nixl
