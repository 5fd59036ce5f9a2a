// What tells which libnixl a program has loaded. No state, any thread.
#include "nixl/version.h"

#include "nixl/agent.h"

extern "C" const char* nixl_version() noexcept {
    return NIXL_VERSION_STRING;
}

namespace nixl {

const char* version() noexcept {
    return nixl_version();
}

}  // namespace nixl
