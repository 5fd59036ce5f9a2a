// Backend LIBFABRIC: the agent's sessions with the project's lanes and lane `fabric`. Threads: as
// nixl/backend.h.
#include <iterator>
#include <string>

#include "nixl/lane.h"
#include "nixl/plugin.h"

#include "fabric_lane.h"

namespace nixl::fabric {
namespace {

constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM};

constexpr int64_t kMaxRails = 64;

constexpr ParameterSpec kParameters[] = {
    {"lanes", ParameterType::STRING, "",
     "lanes that may be used, comma-separated (local, host, stream, fabric); empty: all"},
    {"inline_budget_us", ParameterType::INTEGER, "20",
     "a post may finish inside the call up to this estimated cost, in microseconds", 0, 1'000'000},
    {"checksum", ParameterType::BOOL, "false",
     "the lanes host and stream check what they moved; damage fails the transfer"},
    {"provider", ParameterType::STRING, "",
     "provider of libfabric: efa, verbs or tcp; empty: the first there is of them"},
    {"device_list", ParameterType::STRING, "",
     "devices (domains) of the provider, comma-separated; empty: the nearest"},
    {"num_rails", ParameterType::INTEGER, "0",
     "devices to use at once; 0: all of device_list, all efa devices, else one", 0, kMaxRails},
    {"striping_threshold", ParameterType::SIZE, "128K",
     "transfers of twice this size and more are spread over the rails", 4096, 1LL << 40},
};

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    LaneBackendSpec spec;
    spec.info.name = "LIBFABRIC";
    spec.info.memoryTypes = {MemType::DRAM, MemType::VRAM};
    spec.wantedLanes = parameters.text("lanes");
    spec.checksum = parameters.flag("checksum");
    spec.inlineBudgetMicroseconds = static_cast<uint64_t>(parameters.integer("inline_budget_us"));
    FabricOptions options;
    options.rails.provider = parameters.text("provider");
    options.rails.devices = splitList(parameters.text("device_list"));
    options.rails.rails = static_cast<unsigned>(parameters.integer("num_rails"));
    options.stripingThreshold = parameters.size("striping_threshold");
    spec.lanes.push_back(makeFabricLane(services, std::move(options)));
    return services.createLaneBackend(std::move(spec));
}

constexpr PluginTable kTable = {
    kPluginAbi,   PluginKind::BACKEND,
    "LIBFABRIC",  nullptr,
    "1.6.0",      "memory of other agents by libfabric: EFA, verbs, TCP",
    kMemoryTypes, std::size(kMemoryTypes),
    kParameters,  std::size(kParameters),
    &create,      nullptr,
};

}  // namespace
}  // namespace nixl::fabric

NIXL_EXPORT_PLUGIN(nixl::fabric::kTable)
