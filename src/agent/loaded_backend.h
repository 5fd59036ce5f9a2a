// One backend of an agent with what the agent keeps of it. Immutable once created, but for the
// counters; destroyed after every transfer and region that used it.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "nixl/plugin.h"

#include "base/mutex.h"

namespace nixl::agent {

struct LoadedBackend {
    std::string name;
    unsigned index = 0;
    Parameters parameters;
    std::unique_ptr<PluginServices> services;  // outlives the backend
    std::unique_ptr<Backend> backend;

    bool holds(MemType type) const {
        const auto& types = backend->info().memoryTypes;
        return std::find(types.begin(), types.end(), type) != types.end();
    }
    bool storage() const { return backend->info().storage; }
};

}  // namespace nixl::agent
