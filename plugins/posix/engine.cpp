// Requests and the parts of engines that need no thread.
#include "engine.h"

#include <cerrno>

namespace nixl::posix {

void IoRequest::advance(uint64_t bytes) {
    offset += bytes;
    length -= bytes;
    done += bytes;
    while (bytes > 0) {
        const uint64_t step = bytes < vectors->iov_len ? bytes : vectors->iov_len;
        vectors->iov_base = static_cast<char*>(vectors->iov_base) + step;
        vectors->iov_len -= step;
        bytes -= step;
        if (vectors->iov_len == 0) {
            ++vectors;
            --vectorCount;
        }
    }
}

void IoRequest::reset() {
    std::vector<iovec> keep = std::move(user);
    keep.clear();
    *this = IoRequest{};
    user = std::move(keep);
}

int Engine::registerBuffer(void* /*address*/, uint64_t /*size*/) {
    return -ENOTSUP;
}

void Engine::unregisterBuffer(int /*index*/) {}

}  // namespace nixl::posix
