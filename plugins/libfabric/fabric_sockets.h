// Ends TCP connections that libfabric made. Its endpoints cannot be closed in the middle of what
// they read (1.17 crashes); a connection that has ended gives all its operations back with an
// error, as one does whose peer was killed. Threads: any; libfabric may use the connections
// meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nixl::fabric {

// The connections (by inode) of one endpoint of this process.
using Connections = std::vector<uint64_t>;

enum class Side : uint8_t { OWN, FAR };

// Shuts all connections of this process whose own or far address is `address`, a sockaddr as
// fi_getname gives it. Others have none of them: libfabric's ports are its own.
Connections endConnections(const std::string& address, Side side);

// Whether one of them is still open.
bool anyOpen(const Connections& connections);

}  // namespace nixl::fabric
