// SIGUSR2 shows what the agents of this process hold, where one of them was created to do so. A
// handler of the program's own is left alone. Thread-safe.
#pragma once

#include <memory>

#include "nixl/error.h"

namespace nixl::detail {
class AgentImpl;
}

namespace nixl::agent {

// From now on SIGUSR2 writes this agent's state to standard error too.
Status dumpOnSignal(std::weak_ptr<detail::AgentImpl> agent);

}  // namespace nixl::agent
