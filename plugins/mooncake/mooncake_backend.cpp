// Backend MOONCAKE: the agent's sessions with the project's lanes and the lane of Mooncake's
// transfer engine. Threads: as nixl/backend.h.
#include <iterator>
#include <sstream>
#include <string>

#include "nixl/lane.h"
#include "nixl/plugin.h"

#include "mooncake_lane.h"

namespace nixl::mooncake {
namespace {

constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM};

constexpr ParameterSpec kParameters[] = {
    {"lanes", ParameterType::STRING, "",
     "lanes that may be used, comma-separated (local, host, stream, mooncake); empty: all"},
    {"inline_budget_us", ParameterType::INTEGER, "20",
     "a post may finish inside the call up to this estimated cost, in microseconds", 0, 1'000'000},
    {"checksum", ParameterType::BOOL, "false",
     "the lanes host and stream check what they moved; damage fails the transfer"},
    {"protocol", ParameterType::CHOICE, "auto",
     "Mooncake's transport; auto: rdma where there is a device, else tcp", INT64_MIN, INT64_MAX,
     "auto|tcp|rdma"},
    {"device_name", ParameterType::STRING, "",
     "RDMA devices for Mooncake, comma-separated (mlx5_0,mlx5_1); empty: all"},
    {"local_hostname", ParameterType::STRING, "",
     "the address by which peers reach this agent's engine; empty: the first that is not loopback"},
};

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    LaneBackendSpec spec;
    spec.info.name = "MOONCAKE";
    spec.info.memoryTypes = {MemType::DRAM, MemType::VRAM};
    spec.wantedLanes = parameters.text("lanes");
    spec.checksum = parameters.flag("checksum");
    spec.inlineBudgetMicroseconds = static_cast<uint64_t>(parameters.integer("inline_budget_us"));
    MooncakeOptions options;
    options.protocol = parameters.text("protocol");
    options.host = parameters.text("local_hostname");
    std::stringstream devices(parameters.text("device_name"));
    for (std::string device; std::getline(devices, device, ',');) {
        if (!device.empty()) {
            options.devices.push_back(device);
        }
    }
    spec.lanes.push_back(makeMooncakeLane(services, std::move(options)));
    return services.createLaneBackend(std::move(spec));
}

constexpr PluginTable kTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "MOONCAKE",
    nullptr,
    "1.6.0",
    "memory of other agents by Mooncake's transfer engine, and the project's own lanes",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &create,
    nullptr,
};

}  // namespace
}  // namespace nixl::mooncake

NIXL_EXPORT_PLUGIN(nixl::mooncake::kTable)
