// Backend UCX: the agent's sessions with the project's lanes. Threads: as nixl/backend.h.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "nixl/lane.h"
#include "nixl/plugin.h"

#ifdef NIXL_UCX_LANE
#include "ucx_lane.h"
#endif

namespace nixl::ucx {
namespace {

constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM};

constexpr int64_t kMaxWorkers = 64;

constexpr ParameterSpec kParameters[] = {
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

#ifdef NIXL_UCX_LANE
// "KEY=VALUE,KEY=VALUE": a piece without '=' belongs to the value before it.
void readSettings(const std::string& text, std::map<std::string, std::string>& settings) {
    std::string name;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(',', at), text.size());
        const std::string piece = text.substr(at, end - at);
        at = end + 1;
        if (const size_t equals = piece.find('='); equals != std::string::npos) {
            name = piece.substr(0, equals);
            name = name.starts_with("UCX_") ? name.substr(4) : name;
            settings[name] = piece.substr(equals + 1);
        } else if (!name.empty()) {
            settings[name] += "," + piece;
        }
    }
}

// What a client sets for all its users gives way to what this user set in the environment.
void putUnlessInEnvironment(std::map<std::string, std::string>& settings,
                            const std::map<std::string, std::string>& wanted,
                            PluginServices& services) {
    for (const auto& [name, value] : wanted) {
        const char* const own = std::getenv(("UCX_" + name).c_str());
        if (own == nullptr) {
            settings[name] = value;
        } else if (value != own) {
            services.log(LogLevel::INFO, "UCX_" + name + "=\"" + own +
                                             "\" of the environment is used, not \"" + value +
                                             "\" of engine_config or device_list");
        }
    }
}

UcxOptions optionsOf(const Parameters& parameters, PluginServices& services) {
    UcxOptions options;
    options.peerErrors = parameters.text("ucx_error_handling_mode") == "peer";
    options.workers = static_cast<unsigned>(
        std::max(parameters.integer("num_workers"), parameters.integer("num_threads")));
    std::map<std::string, std::string> wanted;
    readSettings(parameters.text("engine_config"), wanted);
    for (const char* devices : {"device_list", "ucx_devices"}) {
        if (!parameters.text(devices).empty()) {
            wanted["NET_DEVICES"] = parameters.text(devices);
        }
    }
    putUnlessInEnvironment(options.settings, wanted, services);
    for (const auto& [name, value] : parameters.values()) {
        if (name.starts_with("UCX_") && name != "UCX_*") {
            options.settings[name.substr(4)] = value;
        }
    }
    return options;
}

// Whether the user named UCX transports ("rc,cuda_copy"); "all" and "^tcp" name none.
bool namesTransports(const UcxOptions& options) {
    const char* const environment = std::getenv("UCX_TLS");
    const auto given = options.settings.find("TLS");
    const std::string transports = given != options.settings.end() ? given->second
                                   : environment != nullptr        ? environment
                                                                   : "";
    return !transports.empty() && transports != "all" && transports.front() != '^';
}
#endif

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    LaneBackendSpec spec;
    spec.info.name = "UCX";
    spec.info.memoryTypes = {MemType::DRAM, MemType::VRAM};
    spec.wantedLanes = parameters.text("lanes");
    spec.checksum = parameters.flag("checksum");
    spec.inlineBudgetMicroseconds = static_cast<uint64_t>(parameters.integer("inline_budget_us"));
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
