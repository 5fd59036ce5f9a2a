// Backend GPUNETIO: GPU memory of other agents by DOCA GPUNetIO. Threads: as nixl/backend.h.
#include <algorithm>
#include <charconv>
#include <iterator>
#include <sstream>

#include "nixl/plugin.h"

#include "gpunetio_lane.h"

namespace nixl::gpunetio {
namespace {

constexpr MemType kMemoryTypes[] = {MemType::VRAM};

constexpr ParameterSpec kParameters[] = {
    {"network_devices", ParameterType::STRING, "",
     "adapters, such as \"mlx5_0 mlx5_1\": the first for the first GPU; empty or all: those there"},
    {"gpu_devices", ParameterType::STRING, "",
     "GPUs, such as \"0 1\"; empty or all: all of this machine"},
    {"cuda_streams", ParameterType::INTEGER, "8", "streams of each GPU to run kernels on", 1, 256},
    {"gid_index", ParameterType::INTEGER, "0", "of the adapter's port", 0, 255},
    {"data_qp_count", ParameterType::INTEGER, "1",
     "queue pairs to each GPU of a peer; so many transfers go at once", 1, kMostQueues},
    {"oob_interface", ParameterType::STRING, "",
     "no effect (a warning says so): the agents' sessions connect the GPUs"},
    {"oob_port", ParameterType::STRING, "", "as oob_interface"},
    {"lanes", ParameterType::STRING, "gpunetio",
     "lanes that may be used, comma-separated (local, host, stream, gpunetio)"},
};

// Names between spaces or commas; none for "all".
std::vector<std::string> namesOf(std::string text) {
    std::replace(text.begin(), text.end(), ',', ' ');
    std::stringstream words(text);
    std::vector<std::string> names;
    for (std::string word; words >> word;) {
        names.push_back(word);
    }
    return names == std::vector<std::string>{"all"} ? std::vector<std::string>() : names;
}

std::string join(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) {
        text += (text.empty() ? "" : " ") + name;
    }
    return text.empty() ? "none" : text;
}

Result<std::vector<DeviceInfo>> chosenGpus(const Parameters& parameters, Devices& devices) {
    NIXL_RETURN_IF_ERROR(devices.available());
    Result<std::vector<DeviceInfo>> there = devices.list();
    if (!there.ok()) {
        return there;
    }
    const std::vector<std::string> wanted = namesOf(parameters.text("gpu_devices"));
    std::vector<DeviceInfo> chosen = wanted.empty() ? there.value() : std::vector<DeviceInfo>();
    std::vector<std::string> names;
    for (const DeviceInfo& one : there.value()) {
        names.push_back(std::to_string(one.id));
    }
    for (const std::string& name : wanted) {
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) {
            return Status::invalidParam("GPUNETIO: gpu_devices names \"" + name +
                                        "\"; the GPUs here are: " + join(names));
        }
        chosen.push_back(there.value()[static_cast<size_t>(found - names.begin())]);
    }
    if (chosen.empty()) {
        return Status::notSupported("GPUNETIO: this machine has no GPU");
    }
    return chosen;
}

Result<std::vector<std::string>> chosenAdapters(const Parameters& parameters, const Doca& doca) {
    const std::vector<std::string> there = adapters(doca);
    std::vector<std::string> wanted = namesOf(parameters.text("network_devices"));
    for (const std::string& name : wanted) {
        if (std::find(there.begin(), there.end(), name) == there.end()) {
            return Status::invalidParam("GPUNETIO: network_devices names \"" + name +
                                        "\"; the RDMA adapters here are: " + join(there));
        }
    }
    if (there.empty()) {
        return Status::notSupported("GPUNETIO: this machine has no RDMA adapter");
    }
    return wanted.empty() ? there : wanted;
}

Result<std::shared_ptr<Engine>> makeEngine(const Parameters& parameters, PluginServices& services) {
    const Result<const Doca*> doca = openDoca();
    if (!doca.ok()) {
        return doca.status();
    }
    const auto gpus = chosenGpus(parameters, services.devices());
    if (!gpus.ok()) {
        return gpus.status();
    }
    const auto nics = chosenAdapters(parameters, *doca.value());
    if (!nics.ok()) {
        return nics.status();
    }
    Result<std::unique_ptr<Cuda>> cuda = Cuda::open();
    if (!cuda.ok()) {
        return cuda.status();
    }
    std::vector<std::shared_ptr<Device>> devices;
    for (size_t i = 0; i < gpus.value().size(); ++i) {
        DeviceOptions options;
        options.gpu = gpus.value()[i].id;
        options.pciAddress = gpus.value()[i].pciAddress;
        options.adapter = nics.value()[i % nics.value().size()];
        options.gidIndex = static_cast<uint8_t>(parameters.integer("gid_index"));
        options.streams = static_cast<unsigned>(parameters.integer("cuda_streams"));
        Result<std::shared_ptr<Device>> device =
            Device::create(*doca.value(), *cuda.value(), services.devices(), std::move(options));
        if (!device.ok()) {
            return device.status();
        }
        devices.push_back(std::move(device).value());
    }
    return Engine::create(services, std::move(cuda).value(), std::move(devices),
                          static_cast<unsigned>(parameters.integer("data_qp_count")));
}

// Programs written for the published plugin give them.
void warnOfNoEffect(const Parameters& parameters, PluginServices& services) {
    std::string given;
    for (const char* name : {"oob_interface", "oob_port"}) {
        const std::string value = parameters.text(name);
        if (!value.empty()) {
            given += (given.empty() ? "" : ", ") + std::string(name) + "=\"" + value + "\"";
        }
    }
    if (!given.empty()) {
        services.log(LogLevel::WARN,
                     given + (given.find(", ") == std::string::npos ? " has" : " have") +
                         " no effect: the agents' sessions connect the GPUs, at the addresses of "
                         "the agents");
    }
}

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    Result<std::shared_ptr<Engine>> engine = makeEngine(parameters, services);
    if (!engine.ok()) {
        return engine.status();
    }
    warnOfNoEffect(parameters, services);
    LaneBackendSpec spec;
    spec.info.name = "GPUNETIO";
    spec.info.memoryTypes = {std::begin(kMemoryTypes), std::end(kMemoryTypes)};
    spec.wantedLanes = parameters.text("lanes");
    spec.lanes.push_back(makeGpunetioLane(services, std::move(engine).value()));
    return services.createLaneBackend(std::move(spec));
}

constexpr PluginTable kTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "GPUNETIO",
    nullptr,
    "1.0",
    "GPU memory of other agents by requests that the GPU posts itself (DOCA GPUNetIO)",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &create,
    nullptr,
};

}  // namespace
}  // namespace nixl::gpunetio

NIXL_EXPORT_PLUGIN(nixl::gpunetio::kTable)
