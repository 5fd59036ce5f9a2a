// The receiving half of a data connection, shared by both sides: frames and chunk headers through
// a small staging buffer, payload straight to where it belongs. Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include <sys/uio.h>

#include "nixl/error.h"

namespace nixl::peer {

// Bytes that were read and not yet used, and room for more.
class Staging {
  public:
    static constexpr size_t kSize = 16 << 10;

    std::string_view bytes() const { return {buffer_->data() + begin_, end_ - begin_}; }
    void use(size_t n) {
        begin_ += n;
        if (begin_ == end_) {
            begin_ = end_ = 0;
        }
    }
    iovec space() {
        if (begin_ > 0 && end_ == kSize) {
            std::memmove(buffer_->data(), buffer_->data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
        }
        return {buffer_->data() + end_, kSize - end_};
    }
    void filled(size_t n) { end_ += n; }

  private:
    std::unique_ptr<std::array<char, kSize>> buffer_ = std::make_unique<std::array<char, kSize>>();
    size_t begin_ = 0;
    size_t end_ = 0;
};

}  // namespace nixl::peer
