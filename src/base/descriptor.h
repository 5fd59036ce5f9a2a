// The owner of a file descriptor, for all of src/. A value; not thread-safe.
#pragma once

#include <utility>

#include <unistd.h>

namespace nixl::base {

// A descriptor that closes itself.
class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(other.release()) {}
    Fd& operator=(Fd&& other) noexcept {
        reset(other.release());
        return *this;
    }
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() { reset(); }

    int get() const noexcept { return fd_; }
    explicit operator bool() const noexcept { return fd_ >= 0; }
    void reset(int fd = -1) noexcept {
        const int before = std::exchange(fd_, fd);
        if (before >= 0) {
            close(before);
        }
    }
    int release() noexcept { return std::exchange(fd_, -1); }
    void swap(Fd& other) noexcept { std::swap(fd_, other.fd_); }

  private:
    int fd_ = -1;
};

}  // namespace nixl::base
