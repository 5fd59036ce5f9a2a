// See descriptor.h.
#include "base/descriptor.h"

#include <unistd.h>

namespace nixl::base {

Fd::~Fd() {
    if (fd_ >= 0) {
        close(fd_);
    }
}

}  // namespace nixl::base
