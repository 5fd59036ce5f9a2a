// How a request stands in an entry of io_uring, for the engine's ring and for that of small
// transfers. Functions without state.
#pragma once

#include <liburing.h>

#include "engine.h"

namespace nixl::posix {

// Memory that is registered with no ring. The request's vectors must stay until it has ended.
inline void prepareEntry(io_uring_sqe* sqe, const IoRequest& request) {
    const bool write = request.op == IoOp::WRITE;
    const iovec* vectors = request.vectors;
    if (request.vectorCount == 1) {
        const auto size = static_cast<unsigned>(vectors->iov_len);
        write ? io_uring_prep_write(sqe, request.fd, vectors->iov_base, size, request.offset)
              : io_uring_prep_read(sqe, request.fd, vectors->iov_base, size, request.offset);
    } else {
        write ? io_uring_prep_writev(sqe, request.fd, vectors, request.vectorCount, request.offset)
              : io_uring_prep_readv(sqe, request.fd, vectors, request.vectorCount, request.offset);
    }
}

}  // namespace nixl::posix
