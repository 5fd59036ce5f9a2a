// See ucx_options.h.
#include "ucx_options.h"

#include <algorithm>
#include <cstdlib>

namespace nixl::ucx {
namespace {

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

}  // namespace

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

std::string settingOf(const UcxOptions& options, const std::string& name) {
    if (const auto given = options.settings.find(name); given != options.settings.end()) {
        return given->second;
    }
    const char* const environment = std::getenv(("UCX_" + name).c_str());
    return environment == nullptr ? "" : environment;
}

LaneBackendSpec specOf(const char* name, const Parameters& parameters) {
    LaneBackendSpec spec;
    spec.info.name = name;
    spec.info.memoryTypes = {std::begin(kMemoryTypes), std::end(kMemoryTypes)};
    spec.wantedLanes = parameters.text("lanes");
    spec.checksum = parameters.flag("checksum");
    spec.inlineBudgetMicroseconds = static_cast<uint64_t>(parameters.integer("inline_budget_us"));
    return spec;
}

}  // namespace nixl::ucx
