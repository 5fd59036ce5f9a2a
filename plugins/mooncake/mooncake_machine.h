// What this machine has for Mooncake's transports: its addresses and RDMA devices. Threads: any.
#pragma once

#include <string>
#include <vector>

namespace nixl::mooncake {

// An address that other hosts may reach: the first one that is not the loopback's, of an interface
// that is up; else 127.0.0.1.
std::string ownAddress();

// In /sys/class/infiniband, or in the folder that NIXL_RDMA_DEVICES names (for tests).
std::vector<std::string> rdmaDevices();

}  // namespace nixl::mooncake
