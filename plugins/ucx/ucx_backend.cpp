// Backend UCX: the agent's sessions with the project's lanes. Threads: as nixl/backend.h.
#include <string>

#include "ucx_options.h"

#ifdef NIXL_UCX_LANE
#include "ucx_lane.h"
#endif

namespace nixl::ucx {
namespace {

#ifdef NIXL_UCX_LANE
// Whether the user named UCX transports ("rc,cuda_copy"); "all" and "^tcp" name none.
bool namesTransports(const UcxOptions& options) {
    const std::string transports = settingOf(options, "TLS");
    return !transports.empty() && transports != "all" && transports.front() != '^';
}
#endif

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    LaneBackendSpec spec = specOf("UCX", parameters);
#ifdef NIXL_UCX_LANE
    UcxOptions options = optionsOf(parameters, services);
    if (spec.wantedLanes.empty() && namesTransports(options)) {
        if (const auto library = ucx::openUcx(); library.ok()) {
            spec.wantedLanes = "ucx";
        } else {
            services.log(LogLevel::WARN, "UCX_TLS names transports, but " +
                                             library.status().message() +
                                             "; the other lanes are used");
        }
    }
    spec.lanes.push_back(ucx::makeUcxLane(services, std::move(options)));
#endif
    return services.createLaneBackend(std::move(spec));
}

constexpr PluginTable kTable = {
    kPluginAbi,   PluginKind::BACKEND,
    "UCX",        nullptr,
    "1.6.0",      "memory of other agents: this process, this host, other hosts",
    kMemoryTypes, std::size(kMemoryTypes),
    kParameters,  std::size(kParameters),
    &create,      nullptr,
};

}  // namespace
}  // namespace nixl::ucx

NIXL_EXPORT_PLUGIN(nixl::ucx::kTable)
