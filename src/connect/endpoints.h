// The record that tells peers how to reach this agent, and the addresses to try that follow from
// it. Values; not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

#include "base/socket.h"
#include "session/network_access.h"

namespace nixl::peer {

// Where an agent listens.
struct Endpoints {
    Key bootId{};  // of the running system: the same on one host
    uint32_t uid = 0;
    std::string abstract;  // name of the abstract unix socket, without the leading zero
    std::string path;      // of the unix socket in a folder; may be empty
    uint16_t port = 0;     // TCP; 0: none
    std::vector<std::string> addresses;  // 4 or 16 bytes each, best first

    static constexpr size_t kMaxAddresses = 32;
    static constexpr size_t kMaxPath = 107;
    std::string encode() const;
    static Result<Endpoints> decode(std::string_view bytes);
};

// The addresses to reach `there` from here, best first.
std::vector<base::Target> targetsOf(const Endpoints& there, const Key& own_boot_id);

}  // namespace nixl::peer
