// A store that an application or framework has already (a key-value store of its training job, a
// database, a dictionary), given to an agent as the central store for metadata: see
// AgentConfig::store. Implemented by whoever gives it.
//
// Threads: the agent calls it on a thread of its own, one call at a time. Calls may block; what
// they hold up is the exchange of metadata through this store.
#pragma once

#include <optional>
#include <string>

#include "nixl/error.h"

namespace nixl {

class NIXL_API FrameworkStore {
  public:
    virtual ~FrameworkStore() = default;
    // For messages: "TCPStore(10.0.0.1:29500)".
    virtual std::string describe() const = 0;
    virtual Status set(const std::string& key, const std::string& value) = 0;
    // Empty where there is none of this key. Must not wait until there is one.
    virtual Result<std::optional<std::string>> get(const std::string& key) = 0;
    // A key that is not there is removed: OK.
    virtual Status remove(const std::string& key) = 0;
};

}  // namespace nixl
