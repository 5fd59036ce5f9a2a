// The backend's start, registration and end; see posix_backend.h.
#include "posix_backend.h"

#include <algorithm>
#include <cerrno>

#include <sys/resource.h>
#include <unistd.h>

#include "posix_transfer.h"

namespace nixl::posix {

namespace {

const ParameterSpec kParameters[] = {
    {"use_aio", ParameterType::BOOL, "false", "O_DIRECT files by Linux AIO"},
    {"use_uring", ParameterType::BOOL, "false", "O_DIRECT files by io_uring"},
    {"use_posix_aio", ParameterType::BOOL, "false", "O_DIRECT files by POSIX AIO"},
    {"use_threads", ParameterType::BOOL, "false", "O_DIRECT files by threads"},
    {"queue_depth", ParameterType::INTEGER, "128", "requests in flight, O_DIRECT files", 1, 4096},
    {"pool_size", ParameterType::INTEGER, "0",
     "threads for buffered files; 0: twice the processors, 4 to 16", 0, 256},
    {"merge_size", ParameterType::SIZE, "1M",
     "bytes of one request: neighbours are joined up to it, larger pieces are cut", 4096,
     1LL << 30},
    {"max_in_flight", ParameterType::SIZE, "128M",
     "bytes in flight, O_DIRECT files; what cancel may have to wait for", 4096, 1LL << 40},
    {"bounce_buffers", ParameterType::INTEGER, "16",
     "buffers of merge_size bytes for O_DIRECT with memory that is not aligned", 1, 4096},
    {"inline_size", ParameterType::SIZE, "64K",
     "up to so many bytes post itself tries, without waiting, to move", 0, 1LL << 30},
    {"fd_cache_size", ParameterType::INTEGER, "0",
     "open files of path registrations; 0: a quarter of the limit, 16 to 4096", 0, 1 << 24},
    {"register_buffers", ParameterType::BOOL, "false",
     "register memory with io_uring too (pinned; limited by RLIMIT_MEMLOCK)"},
};

const MemType kMemoryTypes[] = {MemType::DRAM, MemType::FILE};

size_t fdCacheSize(int64_t wanted) {
    if (wanted > 0) {
        return static_cast<size_t>(wanted);
    }
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    return std::clamp<size_t>(limit.rlim_cur / 4, 16, 4096);
}

// The engine the user named; more than one is an error that names them.
Result<std::optional<EngineKind>> wishedEngine(const Parameters& parameters) {
    struct Wish {
        const char* key;
        EngineKind kind;
    };
    constexpr Wish kWishes[] = {{"use_aio", EngineKind::LINUX_AIO},
                                {"use_uring", EngineKind::IO_URING},
                                {"use_posix_aio", EngineKind::POSIX_AIO},
                                {"use_threads", EngineKind::THREADS}};
    const Wish* chosen = nullptr;
    for (const Wish& wish : kWishes) {
        if (!parameters.flag(wish.key)) {
            continue;
        }
        if (chosen != nullptr) {
            return Status::invalidParam(std::string("POSIX: ") + chosen->key + " and " + wish.key +
                                        " are both true; at most one may be");
        }
        chosen = &wish;
    }
    return chosen != nullptr ? std::optional(chosen->kind) : std::nullopt;
}

}  // namespace

const PluginTable kPluginTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "POSIX",
    nullptr,
    "1.0",
    "files by io_uring, Linux AIO, POSIX AIO or threads",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &PosixBackend::create,
    nullptr,
};

Result<std::unique_ptr<Backend>> PosixBackend::create(const Parameters& parameters,
                                                      PluginServices& services) {
    std::unique_ptr<PosixBackend> backend(new PosixBackend(services));
    NIXL_RETURN_IF_ERROR(backend->start(parameters));
    return std::unique_ptr<Backend>(std::move(backend));
}

Status PosixBackend::start(const Parameters& parameters) {
    Result<std::optional<EngineKind>> wished = wishedEngine(parameters);
    if (!wished.ok()) {
        return wished.status();
    }
    const uint64_t merge = parameters.size("merge_size");
    if (merge % 4096 != 0) {
        return Status::invalidParam("POSIX: merge_size " + std::to_string(merge) +
                                    " is no multiple of 4096");
    }
    queueLimits_.mergeBytes = merge;
    poolLimits_.mergeBytes = merge;
    inlineBytes_ = parameters.size("inline_size");
    registerBuffers_ = parameters.flag("register_buffers");
    machinery_ = std::make_unique<Machinery>(
        "POSIX", services_.devices(), fdCacheSize(parameters.integer("fd_cache_size")),
        static_cast<size_t>(parameters.integer("bounce_buffers")), merge);
    if (services_.devices().likely()) {
        info_.memoryTypes.push_back(MemType::VRAM);
    }
    EngineOptions options;
    options.depth = static_cast<unsigned>(parameters.integer("queue_depth"));
    options.maxBytesInFlight = parameters.size("max_in_flight");
    options.threads = poolSize(parameters.integer("pool_size"));
    NIXL_RETURN_IF_ERROR(machinery_->start(options, wished.value(), services_));
    queueLimits_.vectored = machinery_->queue->vectored();
    return {};
}

PosixBackend::~PosixBackend() {
    Machinery::stop(std::move(machinery_), services_);
}

const char* PosixBackend::engineName() const {
    return machinery_->queue->name();
}

std::unique_ptr<BackendMemory> PosixBackend::registerDram(const MemoryRegion& region) {
    auto memory = std::make_unique<Memory>();
    memory->address = region.address;
    memory->size = region.size;
    memory->engine = machinery_->queue.get();
    for (uint64_t at = 0; registerBuffers_ && at < region.size; at += kFixedChunk) {
        const int index = memory->engine->registerBuffer(
            reinterpret_cast<void*>(region.address + at), std::min(kFixedChunk, region.size - at));
        if (index < 0 && !machinery_->shared.toldMemlock.exchange(true)) {
            services_.log(
                LogLevel::INFO,
                "POSIX: registering buffers: " + errnoText(-index) + "; going without" +
                    (index == -ENOMEM ? " (the limit is RLIMIT_MEMLOCK, ulimit -l)" : "") +
                    (index == -ENOTSUP ? " (only io_uring can)" : ""));
        }
        memory->fixedBuffers.push_back(index);
    }
    return memory;
}

Result<std::unique_ptr<BackendMemory>> PosixBackend::registerVram(const MemoryRegion& region) {
    const Status status = services_.devices().check(region.address, region.size, region.deviceId);
    if (!status.ok()) {
        return Status(status.code(), "POSIX: " + status.message());
    }
    return std::unique_ptr<BackendMemory>(std::make_unique<Memory>());
}

Result<std::unique_ptr<BackendMemory>> PosixBackend::registerMemory(const MemoryRegion& region) {
    if (region.type == MemType::DRAM) {
        return registerDram(region);
    }
    if (region.type == MemType::VRAM) {
        return registerVram(region);
    }
    if (region.type != MemType::FILE) {
        return Status::notSupported(std::string("POSIX: ") + memTypeName(region.type) +
                                    " is not supported; DRAM, VRAM and FILE are");
    }
    Result<std::unique_ptr<File>> file =
        File::open(region, machinery_->shared.files, machinery_->shared.log);
    if (!file.ok()) {
        return file.status();
    }
    if (machinery_->shared.small != nullptr && file.value()->callerOwned() &&
        file.value()->direct(UINT64_MAX)) {
        machinery_->small.open(machinery_->queue->inlineQueue());
    }
    return std::unique_ptr<BackendMemory>(std::move(file).value());
}

Result<std::unique_ptr<BackendTransfer>> PosixBackend::prepareTransfer(const TransferPlan& plan) {
    NIXL_RETURN_IF_ERROR(PosixTransfer::check(plan));
    return std::unique_ptr<BackendTransfer>(std::make_unique<PosixTransfer>(
        plan, queueLimits_, poolLimits_, inlineBytes_, machinery_->shared));
}

Result<std::vector<std::optional<std::map<std::string, std::string>>>> PosixBackend::query(
    std::span<const MemoryRegion> regions) {
    std::vector<std::optional<std::map<std::string, std::string>>> answers;
    answers.reserve(regions.size());
    for (const MemoryRegion& region : regions) {
        auto answer = queryFile(region);
        if (!answer.ok()) {
            return answer.status();
        }
        answers.push_back(std::move(answer).value());
    }
    return answers;
}

}  // namespace nixl::posix

NIXL_EXPORT_PLUGIN(nixl::posix::kPluginTable)
