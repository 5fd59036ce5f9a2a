// What an agent knows of another: from its metadata blob. Immutable but for `gone`.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "memory/remote_regions.h"
#include "metadata/blob.h"
#include "session/grants.h"
#include "session/network_access.h"

namespace nixl::agent {

struct Peer {
    peer::Identity identity;
    std::string session;
    peer::GrantsPtr grants;
    std::vector<metadata::BackendSection> backends;
    memory::RemoteRegions regions;
    uint64_t version = 0;  // of all this, where the peer publishes it; 0: unknown
    std::map<std::pair<uint32_t, uint64_t>, std::string> keys;  // by backend and region id
    std::atomic<bool> gone{false};  // removed, or superseded by a restart

    // The bit of a backend in regions, 0 where the peer has none of this name.
    uint32_t backendBit(const std::string& name) const {
        for (size_t i = 0; i < backends.size(); ++i) {
            if (backends[i].name == name) {
                return 1U << i;
            }
        }
        return 0;
    }

    // Remote keys imported by backends that keep their own, by backend name and region id.
    Mutex importsMutex;
    std::map<std::pair<std::string, uint64_t>, std::unique_ptr<BackendMemory>> imports
        NIXL_GUARDED_BY(importsMutex);
};

}  // namespace nixl::agent
