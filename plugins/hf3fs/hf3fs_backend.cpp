// The backend's start, registration and end; see hf3fs_backend.h.
#include "hf3fs_backend.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include <sys/resource.h>
#include <sys/stat.h>

#include "hf3fs_transfer.h"

namespace nixl::hf3fs {

namespace {

constexpr double kStopSeconds = 5;  // for 3FS to give requests in flight back
constexpr size_t kBounces = 64;     // at most
constexpr uint64_t kBytesInFlight = 128 << 20;
constexpr uint64_t kGatherBelow = 0;  // what 3FS reaches itself is never copied
constexpr const char* kUsualMount = "/mnt/3fs";

const ParameterSpec kParameters[] = {
    {"mount_point", ParameterType::STRING, "",
     "where the 3FS file system is mounted; where it is not given, /mnt/3fs if that is one"},
    {"mem_config", ParameterType::CHOICE, "dram",
     "dram: copy through shared buffers; dram_zc: only memory that 3FS reaches without a copy; "
     "auto: without a copy where it can",
     INT64_MIN, INT64_MAX, "dram|dram_zc|auto"},
    {"iopool_size", ParameterType::INTEGER, "64", "requests in flight of each direction", 1 << 6,
     1 << 20},
};

const MemType kMemoryTypes[] = {MemType::DRAM, MemType::FILE};
const char* const kAliases[] = {"3FS", nullptr};

size_t fdCacheSize() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    // The client keeps a second descriptor of each registered one.
    return std::clamp<size_t>(limit.rlim_cur / 8, 16, 4096);
}

}  // namespace

const PluginTable kPluginTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "HF3FS",
    kAliases,
    "1.0",
    "files of a mounted 3FS through its client's rings",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &Hf3fsBackend::create,
    nullptr,
};

Rings::~Rings() {
    if (bounceIov.base != nullptr) {
        engine.reset();
        library.iovDestroy(&bounceIov);
    }
}

Result<std::unique_ptr<Backend>> Hf3fsBackend::create(const Parameters& parameters,
                                                      PluginServices& services) {
    Result<const Library*> library = openLibrary();
    if (!library.ok()) {
        return library.status();
    }
    std::unique_ptr<Hf3fsBackend> backend(new Hf3fsBackend(services, *library.value()));
    NIXL_RETURN_IF_ERROR(backend->start(parameters));
    return std::unique_ptr<Backend>(std::move(backend));
}

// What 3FS itself calls the mount that holds `wanted`.
Status Hf3fsBackend::findMount(const std::string& wanted) {
    const std::string path = wanted.empty() ? kUsualMount : wanted;
    const std::string what = "HF3FS: mount_point \"" + path + "\"";
    const std::string advice =
        wanted.empty() ? " (mount_point is not given; name the folder where 3FS is mounted)" : "";
    struct stat info {};
    if (stat(path.c_str(), &info) < 0) {
        const int error = errno;
        return {error == ENOENT ? ErrorCode::NOT_FOUND : ErrorCode::INVALID_PARAM,
                what + ": " + posix::errnoText(error) + advice, error};
    }
    if (!S_ISDIR(info.st_mode)) {
        return Status::invalidParam(what + ": not a folder" + advice);
    }
    std::array<char, sizeof(Iov::mountPoint)> name{};
    int length = 0;
    try {
        length =
            library_.extractMountPoint(name.data(), static_cast<int>(name.size()), path.c_str());
    } catch (...) {  // the client is C++ inside
        length = -1;
    }
    if (length <= 0) {
        return Status::invalidParam(what + ": not on a mounted 3FS (type fuse.hf3fs)" + advice);
    }
    if (static_cast<size_t>(length) > name.size() || name[0] == '\0') {
        return Status::invalidParam(what + ": the name of its mount has more than 255 bytes");
    }
    mount_ = name.data();
    mountDevice_ = info.st_dev;
    return {};
}

Status Hf3fsBackend::start(const Parameters& parameters) {
    NIXL_RETURN_IF_ERROR(findMount(parameters.text("mount_point")));
    const std::string config = parameters.text("mem_config");
    config_ = config == "dram_zc" ? MemConfig::ZERO_COPY
              : config == "auto"  ? MemConfig::AUTO
                                  : MemConfig::DRAM;
    if (config_ != MemConfig::ZERO_COPY && services_.devices().likely()) {
        info_.memoryTypes.push_back(MemType::VRAM);
    }
    sharedMemory_ = std::make_unique<SharedMemory>(library_, mount_);
    return startRings(static_cast<unsigned>(parameters.integer("iopool_size")));
}

Status Hf3fsBackend::startRings(unsigned depth) {
    Iov bounces;
    const size_t count = config_ == MemConfig::ZERO_COPY ? 0 : std::min<size_t>(depth, kBounces);
    if (count > 0) {
        const size_t bytes = count * Rings::kBounceBytes;
        const int error = library_.iovCreate(&bounces, mount_.c_str(), bytes, 0, -1);
        if (error != 0) {
            return Status::backend("HF3FS: " + std::to_string(bytes >> 20) +
                                       " MiB of shared buffers on " + mount_ + ": " +
                                       posix::errnoText(-error),
                                   -error);
        }
    }
    rings_ = std::make_unique<Rings>(library_, services_.devices(), fdCacheSize(), count, bounces);
    Rings& all = *rings_;
    all.shared.log = [this](const std::string& text) { services_.log(LogLevel::INFO, text); };
    const Library& library = library_;
    all.shared.files->opened = [&library](int fd) {
        return library.isHf3fs(fd) ? std::max(library.regFd(fd, 0), 0) : EXDEV;
    };
    all.shared.files->closing = [&library](int fd) { library.deregFd(fd); };
    posix::EngineOptions options;
    options.depth = depth;
    options.maxBytesInFlight = kBytesInFlight;
    options.plugin = "HF3FS";
    std::string reason;
    all.engine = RingEngine::make(library_, mount_, options, all.bounceIov, all.scheduler, reason);
    if (all.engine == nullptr) {
        return Status::backend("HF3FS: " + mount_ + ": " + reason);
    }
    all.scheduler.setEngine(all.engine.get());
    all.shared.queue = &all.scheduler;
    all.shared.pool = &all.scheduler;
    return {};
}

Hf3fsBackend::~Hf3fsBackend() {
    if (rings_ == nullptr) {
        return;
    }
    if (getpid() != process_) {  // forked: the threads are the parent's, nothing can be ended
        [[maybe_unused]] const Rings* left = rings_.release();
        return;
    }
    rings_->shared.closing = true;
    if (rings_->engine == nullptr) {
        return;
    }
    rings_->scheduler.wake();
    if (!rings_->engine->stop(kStopSeconds)) {
        services_.log(LogLevel::WARN, "HF3FS: 3FS still holds requests; leaving them to it");
        rings_->shared.log = [](const std::string&) {};
        [[maybe_unused]] const Rings* left = rings_.release();  // what it still uses must stay
    }
}

Status Hf3fsBackend::notOf3fs(const std::string& what) const {
    return Status::invalidParam("HF3FS: register " + what + ": it is not a file of the 3FS at " +
                                mount_);
}

Result<std::unique_ptr<BackendMemory>> Hf3fsBackend::registerDram(const MemoryRegion& region) {
    auto memory = std::make_unique<RegisteredMemory>();
    memory->address = region.address;
    memory->size = region.size;
    memory->engine = rings_->engine.get();
    memory->staged = true;
    if (config_ != MemConfig::DRAM) {
        Result<std::shared_ptr<PublishedIov>> found =
            sharedMemory_->find(region.address, region.size);
        if (found.ok()) {
            memory->published = std::move(found).value();
            memory->staged = false;
        } else if (config_ == MemConfig::ZERO_COPY) {
            return Status(found.status().code(),
                          found.status().message() + " (mem_config is dram_zc; auto copies)");
        } else if (!toldCopies_.exchange(true)) {
            services_.log(LogLevel::INFO,
                          found.status().message() + "; copying, here and wherever that is so");
        }
    }
    return std::unique_ptr<BackendMemory>(std::move(memory));
}

Result<std::unique_ptr<BackendMemory>> Hf3fsBackend::registerFile(const MemoryRegion& region) {
    Result<std::optional<posix::FileSpec>> spec = posix::parseFileSpec(region.metadata, "HF3FS");
    if (!spec.ok()) {
        return spec.status();
    }
    const std::optional<posix::FileSpec>& path = spec.value();
    if (path && path->create) {  // else it would be made where it does not belong
        const size_t cut = path->path.rfind('/');
        const std::string folder = cut == std::string::npos ? "."
                                   : cut == 0               ? "/"
                                                            : path->path.substr(0, cut);
        struct stat info {};
        if (stat(folder.c_str(), &info) == 0 && info.st_dev != mountDevice_) {
            return notOf3fs("\"" + path->path + "\"");
        }
    }
    if (!path && region.deviceId <= INT32_MAX &&
        fcntl(static_cast<int>(region.deviceId), F_GETFD) >= 0 &&
        !library_.isHf3fs(static_cast<int>(region.deviceId))) {
        return notOf3fs("fd " + std::to_string(region.deviceId));
    }
    Result<std::unique_ptr<posix::File>> file =
        posix::File::open(region, rings_->shared.files, rings_->shared.log, {"HF3FS", true});
    if (!file.ok()) {
        return path && file.status().systemErrno() == EXDEV ? notOf3fs("\"" + path->path + "\"")
                                                            : file.status();
    }
    return std::unique_ptr<BackendMemory>(std::move(file).value());
}

Result<std::unique_ptr<BackendMemory>> Hf3fsBackend::registerMemory(const MemoryRegion& region) {
    switch (region.type) {
        case MemType::DRAM:
            return registerDram(region);
        case MemType::FILE:
            return registerFile(region);
        case MemType::VRAM: {
            if (config_ == MemConfig::ZERO_COPY) {
                return Status::notSupported(
                    "HF3FS: GPU memory goes through shared buffers, which mem_config dram_zc "
                    "excludes; use dram or auto");
            }
            const Status status =
                services_.devices().check(region.address, region.size, region.deviceId);
            if (!status.ok()) {
                return Status(status.code(), "HF3FS: " + status.message());
            }
            return std::unique_ptr<BackendMemory>(std::make_unique<RegisteredMemory>());
        }
        default:
            return Status::notSupported(std::string("HF3FS: ") + memTypeName(region.type) +
                                        " is not supported; DRAM, VRAM and FILE are");
    }
}

Result<std::unique_ptr<BackendTransfer>> Hf3fsBackend::prepareTransfer(const TransferPlan& plan) {
    NIXL_RETURN_IF_ERROR(Hf3fsTransfer::check(plan));
    const posix::BuildLimits limits{Rings::kBounceBytes, false, kGatherBelow};
    return std::unique_ptr<BackendTransfer>(
        std::make_unique<Hf3fsTransfer>(plan, limits, rings_->shared, *rings_->engine));
}

Result<std::vector<std::optional<std::map<std::string, std::string>>>> Hf3fsBackend::query(
    std::span<const MemoryRegion> regions) {
    std::vector<std::optional<std::map<std::string, std::string>>> answers;
    answers.reserve(regions.size());
    for (const MemoryRegion& region : regions) {
        auto answer = posix::queryFile(region, "HF3FS");
        if (!answer.ok()) {
            return answer.status();
        }
        answers.push_back(std::move(answer).value());
    }
    return answers;
}

Result<std::vector<StorageEntry>> Hf3fsBackend::list(std::string_view prefix, size_t limit) {
    return posix::listFiles(prefix, limit, "HF3FS");
}

Status Hf3fsBackend::remove(std::string_view name) {
    return posix::removeFile(name, "HF3FS");
}

}  // namespace nixl::hf3fs

NIXL_EXPORT_PLUGIN(nixl::hf3fs::kPluginTable)
