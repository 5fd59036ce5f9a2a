// Host names and addresses as an application writes them: where to connect to and where to listen.
// Thread-safe; looking a name up waits for the system's resolver.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nixl/error.h"

#include "base/socket.h"

namespace nixl::exchange_tcp {

// "127.0.0.1:8888", "[::1]:8888", "host:8888".
std::string addressText(const std::string& host, uint16_t port);

// What a numeric address stands for ("127.0.0.1", "::1", "[::1]", "fe80::1%eth0"); empty where it
// is a name.
std::optional<std::vector<base::Target>> numericTargets(const std::string& host, uint16_t port);
// The same of a name, in the order the system prefers. NOT_FOUND: there is no such host; BACKEND
// with errno EAGAIN: the resolver does not answer now.
Result<std::vector<base::Target>> resolve(const std::string& host, uint16_t port);

struct Listening {
    std::vector<base::Fd> sockets;
    uint16_t port = 0;  // of all of them
    bool everywhere = false;
    bool loopback = false;  // nobody else's host reaches it
};
// Listens on all addresses (empty host) or on those of one host; port 0: the system chooses.
Result<Listening> listenAt(const std::string& host, uint16_t port);

}  // namespace nixl::exchange_tcp
