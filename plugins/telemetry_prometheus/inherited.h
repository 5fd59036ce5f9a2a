// What a forked child inherits of an endpoint: the sockets, without the threads that serve them.
// In the child they are closed, else they would keep the port, and whoever connects, waiting for as
// long as it lives. Thread-safe.
#pragma once

#include <functional>
#include <string>

namespace nixl::prometheus_exporter {

// Calls `listen`, which listens at numeric address `host` and gives the port (0: it does not), and
// may throw. No fork comes between that and the note of it.
int listenNoted(const std::string& host, const std::function<int()>& listen);
void forgetNoted(int port);  // when it is closed

}  // namespace nixl::prometheus_exporter
