// Backend UCX_MO: backend UCX with several engines of the UCX library, one for each GPU or group of
// network devices. Threads: as nixl/backend.h.
#include <algorithm>
#include <array>
#include <iterator>

#include "engine_devices.h"
#include "ucx/ucx_lane.h"
#include "ucx/ucx_library.h"
#include "ucx/ucx_machine.h"
#include "ucx/ucx_options.h"

namespace nixl::ucx_mo {
namespace {

constexpr int64_t kMaxEngines = 64;

constexpr ParameterSpec kEngines = {
    "num_ucx_engines",
    ParameterType::INTEGER,
    "0",
    "engines of the UCX library; 0: one for each group of ucx_devices, else for each GPU",
    0,
    kMaxEngines};

constexpr ParameterSpec kDevices = {"ucx_devices", ParameterType::STRING, "",
                                    "network devices for the engines, in groups separated by ';'; "
                                    "without one each is a group"};

// Those of UCX, and the engines.
constexpr auto kParameters = [] {
    std::array<ParameterSpec, std::size(ucx::kParameters) + 1> all{};
    std::copy(std::begin(ucx::kParameters), std::end(ucx::kParameters), all.begin());
    for (ParameterSpec& one : all) {
        if (one.name != nullptr && std::string_view(one.name) == kDevices.name) {
            one = kDevices;
        }
    }
    all.back() = kEngines;
    return all;
}();

size_t gpusOf(PluginServices& services) {
    if (!services.devices().likely()) {
        return 0;
    }
    const auto gpus = services.devices().list();
    return gpus.ok() ? gpus.value().size() : 0;
}

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    const Result<const ucx::UcxLibrary*> library = ucx::openUcx();
    if (!library.ok()) {
        return Status(library.status().code(), "UCX_MO: " + library.status().message());
    }
    ucx::UcxOptions options = ucx::optionsOf(parameters, services);
    options.severalEngines = true;
    const std::string devices = ucx::settingOf(options, "NET_DEVICES");
    auto engines = static_cast<size_t>(parameters.integer("num_ucx_engines"));
    if (engines == 0 && devices.empty()) {
        engines = std::min(gpusOf(services), static_cast<size_t>(kMaxEngines));
    }
    Result<std::vector<std::string>> dealt = dealDevices(devices, engines, ucx::networkDevices());
    if (!dealt.ok()) {
        return dealt.status();
    }
    options.engines = std::move(dealt).value();
    LaneBackendSpec spec = ucx::specOf("UCX_MO", parameters);
    spec.lanes.push_back(ucx::makeUcxLane(services, std::move(options)));
    return services.createLaneBackend(std::move(spec));
}

constexpr PluginTable kTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "UCX_MO",
    nullptr,
    "1.6.0",
    "memory of other agents through several engines of the UCX library, one for each GPU or group "
    "of network devices",
    ucx::kMemoryTypes,
    std::size(ucx::kMemoryTypes),
    kParameters.data(),
    kParameters.size(),
    &create,
    nullptr,
};

}  // namespace
}  // namespace nixl::ucx_mo

NIXL_EXPORT_PLUGIN(nixl::ucx_mo::kTable)
