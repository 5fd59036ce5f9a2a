// The backend's start, registration and end; see gusli_backend.h.
#include "gusli_backend.h"

#include <algorithm>
#include <cerrno>

#include <sys/stat.h>

#include "block_file.h"
#include "gusli_transfer.h"

namespace nixl::gusli {

namespace {

constexpr uint64_t kRequestBytes = 1 << 20;  // neighbours are joined up to it, more is cut
constexpr uint64_t kBytesInFlight = 128 << 20;
constexpr size_t kBounces = 16;
constexpr size_t kFiles = 16;  // of the cache, which devices do not use
// Everything is gathered in a buffer.
constexpr posix::BuildLimits kClientLimits{ClientSide::kBufferBytes, false, UINT64_MAX};

const ParameterSpec kParameters[] = {
    {"config_file", ParameterType::STRING, "",
     "the list of devices: its path, or its text (begins with # or version=)"},
    {"client_name", ParameterType::STRING, "nixl",
     "how a GUSLI server is to call this client; local devices have no use for it"},
    {"use_client", ParameterType::CHOICE, "network",
     "network: devices of kind N go through the GUSLI client, others through the native engine; "
     "all: every device goes through the client",
     INT64_MIN, INT64_MAX, "network|all"},
    {"max_num_simultaneous_requests", ParameterType::INTEGER, "256", "requests in flight", 1, 4096},
};

const MemType kMemoryTypes[] = {MemType::DRAM, MemType::BLOCK};

}  // namespace

const PluginTable kPluginTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "GUSLI",
    nullptr,
    "1.0",
    "block devices by io_uring and O_DIRECT, or through the GUSLI client",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &GusliBackend::create,
    nullptr,
};

Result<std::unique_ptr<Backend>> GusliBackend::create(const Parameters& parameters,
                                                      PluginServices& services) {
    std::unique_ptr<GusliBackend> backend(new GusliBackend(services));
    NIXL_RETURN_IF_ERROR(backend->start(parameters));
    return std::unique_ptr<Backend>(std::move(backend));
}

Status GusliBackend::start(const Parameters& parameters) {
    Result<std::vector<DeviceConfig>> devices = readConfig(parameters.text("config_file"));
    if (!devices.ok()) {
        return devices.status();
    }
    devices_ = std::move(devices).value();
    machinery_ = std::make_unique<posix::Machinery>("GUSLI", services_.devices(), kFiles, kBounces,
                                                    kRequestBytes);
    if (services_.devices().likely()) {
        info_.memoryTypes.push_back(MemType::VRAM);
    }
    posix::EngineOptions options;
    options.depth = static_cast<unsigned>(parameters.integer("max_num_simultaneous_requests"));
    options.maxBytesInFlight = kBytesInFlight;
    options.threads = posix::poolSize(0);
    options.plugin = "GUSLI";
    allThroughClient_ = parameters.text("use_client") == "all";
    clientOptions_.name = parameters.text("client_name");
    clientOptions_.requests = options.depth;
    NIXL_RETURN_IF_ERROR(machinery_->start(options, posix::EngineKind::IO_URING, services_));
    limits_ = {kRequestBytes, machinery_->queue->vectored()};
    return {};
}

GusliBackend::~GusliBackend() {
    ClientSide::stop(std::move(client_), services_);
    posix::Machinery::stop(std::move(machinery_), services_);
}

Result<std::shared_ptr<Device>> GusliBackend::open(const DeviceConfig& config) {
    const std::lock_guard lock(mutex_);
    if (throughClient(config)) {
        return openThroughClient(config);
    }
    std::weak_ptr<Device>& known = open_[config.id];
    if (std::shared_ptr<Device> device = known.lock()) {
        return device;
    }
    Result<std::shared_ptr<Device>> opened = Device::open(config);
    if (opened.ok()) {
        known = opened.value();
        if (!opened.value()->direct()) {
            services_.log(LogLevel::INFO, "GUSLI: " + opened.value()->label() +
                                              ": O_DIRECT is not supported for it, going "
                                              "buffered");
        }
    }
    return opened;
}

// REQUIRES: mutex_ is held
Result<std::shared_ptr<Device>> GusliBackend::openThroughClient(const DeviceConfig& config) {
    if (client_ == nullptr) {
        std::vector<const DeviceConfig*> devices;
        for (const DeviceConfig& device : devices_) {
            if (throughClient(device)) {
                devices.push_back(&device);
            }
        }
        Result<std::string> list = clientList(devices);
        if (!list.ok()) {
            return list.status();
        }
        Client::Options options = clientOptions_;
        options.devices = std::move(list).value();
        Result<std::unique_ptr<ClientSide>> made = ClientSide::make(options, services_);
        if (!made.ok()) {
            return Status(made.status().code(), made.status().message() + " (device " + config.id +
                                                    " (\"" + config.path +
                                                    "\") goes through the GUSLI client)");
        }
        client_ = std::move(made).value();
    }
    return client_->connect(config);
}

Status GusliBackend::noDevice(const MemoryRegion& region) const {
    return Status::notFound(
        "GUSLI: register device " + std::to_string(region.deviceId) +
        (region.metadata.empty() ? std::string() : " (\"" + std::string(region.metadata) + "\")") +
        ": config_file has none of that id; it has " + deviceIds(devices_));
}

Result<std::unique_ptr<BackendMemory>> GusliBackend::registerBlocks(const MemoryRegion& region) {
    const DeviceConfig* const config = findDevice(devices_, region.deviceId, region.metadata);
    if (config == nullptr) {
        return noDevice(region);
    }
    Result<std::shared_ptr<Device>> opened = open(*config);
    if (!opened.ok()) {
        return opened.status();
    }
    const std::shared_ptr<Device>& device = opened.value();
    const uint64_t limit = device->grows() ? INT64_MAX : device->size();
    if (region.address > limit || region.size > limit - region.address) {
        return Status::invalidParam("GUSLI: register " + std::to_string(region.size) +
                                    " bytes at " + std::to_string(region.address) + " of " +
                                    device->label() + ": it has only " + std::to_string(limit) +
                                    " bytes");
    }
    posix::OpenedFile file;
    file.fd = device->fd();
    file.owner = device;
    file.label = device->label();
    file.direct = device->direct();
    file.offsetAlign = device->blockSize();
    file.memoryAlign = device->memoryAlign();
    Result<std::unique_ptr<posix::File>> adopted =
        posix::File::adopt(std::move(file), machinery_->shared.files, "GUSLI");
    if (!adopted.ok()) {
        return adopted.status();
    }
    if (machinery_->shared.small != nullptr && device->direct() && !device->throughClient()) {
        machinery_->small.open(machinery_->queue->inlineQueue());
    }
    return std::unique_ptr<BackendMemory>(std::move(adopted).value());
}

Result<std::unique_ptr<BackendMemory>> GusliBackend::registerMemory(const MemoryRegion& region) {
    if (region.type == MemType::BLOCK) {
        return registerBlocks(region);
    }
    if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
        return Status::notSupported(std::string("GUSLI: ") + memTypeName(region.type) +
                                    " is not supported; DRAM, VRAM and BLOCK are");
    }
    if (region.type == MemType::VRAM) {
        const Status status =
            services_.devices().check(region.address, region.size, region.deviceId);
        if (!status.ok()) {
            return Status(status.code(), "GUSLI: " + status.message());
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<posix::Memory>());
    }
    auto memory = std::make_unique<posix::Memory>();
    memory->address = region.address;
    memory->size = region.size;
    memory->engine = machinery_->queue.get();
    return std::unique_ptr<BackendMemory>(std::move(memory));
}

Result<std::unique_ptr<BackendTransfer>> GusliBackend::prepareTransfer(const TransferPlan& plan) {
    NIXL_RETURN_IF_ERROR(GusliTransfer::check(plan));
    if (deviceOf(*plan.remoteRegions.front().memory).throughClient()) {
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<GusliTransfer>(plan, kClientLimits, client_->shared()));
    }
    return std::unique_ptr<BackendTransfer>(
        std::make_unique<GusliTransfer>(plan, limits_, machinery_->shared));
}

// A device is there when the list has it and its path exists, or its server answers; whether a path
// can be opened shows when it is registered.
Result<std::vector<std::optional<std::map<std::string, std::string>>>> GusliBackend::query(
    std::span<const MemoryRegion> regions) {
    std::vector<std::optional<std::map<std::string, std::string>>> answers;
    for (const MemoryRegion& region : regions) {
        const DeviceConfig* const config = findDevice(devices_, region.deviceId, region.metadata);
        struct stat info {};
        const bool local = config != nullptr && config->kind != Kind::NETWORK;
        if (config == nullptr || (local && stat(config->path.c_str(), &info) < 0)) {
            answers.emplace_back();
            continue;
        }
        std::map<std::string, std::string> attributes;
        if (local) {
            attributes = posix::attributesOf(info);
        }
        attributes["path"] = config->path;
        attributes["kind"] = std::string(1, static_cast<char>(config->kind));
        if (const Result<std::shared_ptr<Device>> device = open(*config); device.ok()) {
            attributes["size"] = std::to_string(device.value()->size());
            attributes["block_size"] = std::to_string(device.value()->blockSize());
        } else if (!local) {
            services_.log(LogLevel::INFO, device.status().message());
            answers.emplace_back();
            continue;
        }
        answers.emplace_back(std::move(attributes));
    }
    return answers;
}

}  // namespace nixl::gusli

NIXL_EXPORT_PLUGIN(nixl::gusli::kPluginTable)
