// The key that agents share to know each other by. Thread-safe.
#pragma once

#include <string>

#include "nixl/agent.h"

namespace nixl::agent {

// The key of the configuration, or of its file, which nobody else may read; empty: none.
Result<std::string> readAuthKey(const AgentConfig& config);

}  // namespace nixl::agent
