// Lane `mooncake`: Mooncake's transfer engine, which writes and reads the memory that peers have
// registered with theirs. Threads: as nixl/backend.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "nixl/lane.h"
#include "nixl/services.h"

namespace nixl::mooncake {

struct MooncakeOptions {
    std::string protocol = "auto";     // auto, tcp, rdma
    std::string host;                  // empty: this machine's address
    std::vector<std::string> devices;  // of rdma; empty: all
};

std::unique_ptr<Lane> makeMooncakeLane(PluginServices& services, MooncakeOptions options);

}  // namespace nixl::mooncake
