// What the user sets of the backends on the UCX library: parameters, and the options made of them.
// Threads: any.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nixl/lane.h"
#include "nixl/plugin.h"
#include "nixl/services.h"

namespace nixl::ucx {

struct UcxOptions {
    std::map<std::string, std::string> settings;  // UCX_… → value, without the prefix
    bool peerErrors = true;                       // UCP_ERR_HANDLING_MODE_PEER
    unsigned workers = 1;                         // of each engine, each with a thread of its own
    // An engine is a context with workers; for each its UCX_NET_DEVICES, empty: as in `settings`.
    std::vector<std::string> engines = {""};
    // Addresses and keys travel as lists, one for each engine, and the library must be there.
    bool severalEngines = false;
};

inline constexpr int64_t kMaxWorkers = 64;
inline constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM};

inline constexpr ParameterSpec kParameters[] = {
    {"lanes", ParameterType::STRING, "",
     "lanes that may be used, comma-separated (local, host, stream, ucx); empty: all"},
    {"inline_budget_us", ParameterType::INTEGER, "20",
     "a post may finish inside the call up to this estimated cost, in microseconds", 0, 1'000'000},
    {"checksum", ParameterType::BOOL, "false",
     "the lanes host and stream check what they moved; damage fails the transfer"},
    {"num_threads", ParameterType::INTEGER, "0",
     "as num_workers; the larger one counts (each worker has a thread)", 0, kMaxWorkers},
    {"num_workers", ParameterType::INTEGER, "1",
     "workers of the UCX library, over which transfers are spread", 1, kMaxWorkers},
    {"ucx_devices", ParameterType::STRING, "", "network devices for the UCX library"},
    {"device_list", ParameterType::STRING, "", "as ucx_devices"},
    {"ucx_error_handling_mode", ParameterType::CHOICE, "peer",
     "how the UCX library reports a lost peer", INT64_MIN, INT64_MAX, "none|peer"},
    {"engine_config", ParameterType::STRING, "", "settings of the UCX library: KEY=VALUE,…"},
    {"UCX_*", ParameterType::STRING, "", "any setting of the UCX library"},
};

// The options of `parameters`; what is overridden by the environment is logged.
UcxOptions optionsOf(const Parameters& parameters, PluginServices& services);
// The value of a setting: by parameters, else in the environment, else empty.
std::string settingOf(const UcxOptions& options, const std::string& name);
// The backend's part of what createLaneBackend takes, without lanes.
LaneBackendSpec specOf(const char* name, const Parameters& parameters);

}  // namespace nixl::ucx
