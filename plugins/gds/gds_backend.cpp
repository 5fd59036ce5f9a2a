// Start, registration and end; see gds_backend.h.
#include "gds_backend.h"

#include <algorithm>
#include <chrono>

#include <sys/resource.h>

namespace nixl::gds {

namespace {

constexpr double kStopSeconds = 5;  // for the system to give requests under way back

constexpr auto kBusyPoll = std::chrono::microseconds(10);
constexpr unsigned kBusyPolls = 8;

size_t fdCapacity(int64_t wanted) {
    if (wanted > 0) {
        return static_cast<size_t>(wanted);
    }
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    return std::clamp<size_t>(limit.rlim_cur / 4, 16, 4096);
}

}  // namespace

class GdsTransfer final : public BackendTransfer {
  public:
    GdsTransfer(const TransferPlan& plan, GdsBackend& backend)
        : backend_(backend), plan_(plan), job_(backend.info_.name, plan, backend.maxRequest_) {}

    Status post(CompletionPtr completion,
                std::string_view /*notification*/,
                bool /*has_notification*/) override {
        job_.start(std::move(completion), backend_.posts_.fetch_add(1) + 1);
        backend_.engine_->post(job_);
        return {};
    }
    void cancel() override { job_.cancel(); }
    // A caller who does nothing but poll holds a processor, or half of one, that the threads could
    // use: he sleeps for a moment now and then.
    void help() override {
        const auto now = std::chrono::steady_clock::now();
        polls_ = now - lastPoll_ < kBusyPoll ? polls_ + 1 : 0;
        if (polls_ >= kBusyPolls) {
            job_.nap();
        }
        lastPoll_ = polls_ >= kBusyPolls ? std::chrono::steady_clock::now() : now;
    }
    std::optional<uint64_t> bytesDone() const override { return job_.bytesDone(); }

    TransferDescription describe() const override {
        bool host = false;
        bool gpu = false;
        for (const PlanRegion& region : plan_.localRegions) {
            (region.type == MemType::VRAM ? gpu : host) = true;
        }
        std::string reason = backend_.engine_->describe();
        reason += gpu ? "; " + backend_.driver_->mode : "";
        reason += host ? "; host memory: cuFile makes the system's calls" : "";
        reason += host && !gpu ? " (" + backend_.driver_->mode + ")" : "";
        return {{}, std::move(reason), {}};
    }

  private:
    GdsBackend& backend_;
    const TransferPlan& plan_;
    Job job_;
    std::chrono::steady_clock::time_point lastPoll_;
    unsigned polls_ = 0;  // one right after the other
};

Memory::~Memory() {
    if (registered != nullptr) {
        const GpuScope gpu(*services, device);
        (void)library->bufDeregister(registered);
    }
}

GdsOptions commonOptions(Kind kind, const Parameters& parameters) {
    GdsOptions options;
    options.kind = kind;
    options.maxRequest = parameters.size("max_request_size");
    options.driverSeconds = parameters.seconds("driver_timeout");
    options.fdCache = parameters.integer("fd_cache_size");
    return options;
}

Result<std::unique_ptr<Backend>> GdsBackend::create(const GdsOptions& options,
                                                    PluginServices& services) {
    std::unique_ptr<GdsBackend> backend(new GdsBackend(options.kind, services));
    if (Status status = backend->start(options); !status.ok()) {
        return backend->named(status);
    }
    return std::unique_ptr<Backend>(std::move(backend));
}

GdsBackend::GdsBackend(Kind kind, PluginServices& services)
    : services_(services),
      info_{kind == Kind::BATCHES ? "GDS" : "GDS_MT",
            {MemType::DRAM, MemType::VRAM, MemType::FILE},
            true} {}

Status GdsBackend::named(const Status& status) const {
    return {status.code(), info_.name + ": " + status.message(), status.systemErrno(),
            status.descriptorIndex()};
}

Status GdsBackend::start(GdsOptions options) {
    Result<const CuFileDriver*> driver = openCuFile(options.driverSeconds);
    if (!driver.ok()) {
        return driver.status();
    }
    driver_ = driver.value();
    files_ = std::make_shared<FileTable>(*driver_->library, fdCapacity(options.fdCache));
    maxRequest_ = options.maxRequest;
    unsigned& limit = options.engine.batchRequests;
    if (options.kind == Kind::THREADS) {
        engine_ = makeThreadEngine(*driver_, services_, options.engine);
    } else {
        if (driver_->batchLimit != 0 && limit > driver_->batchLimit) {
            services_.log(LogLevel::INFO, "batch_limit " + std::to_string(limit) +
                                              ": cuFile takes " +
                                              std::to_string(driver_->batchLimit) +
                                              " requests a batch (io_batchsize in cufile.json), "
                                              "which are used");
            limit = driver_->batchLimit;
        }
        engine_ = makeBatchEngine(*driver_, services_, options.engine);
    }
    services_.log(LogLevel::INFO,
                  driver_->library->path + " " + driver_->library->version + ", " + driver_->mode);
    const std::string why = engine_->start();
    return why.empty() ? Status() : Status::backend(why);
}

// What threads still use, or a parent's are gone from, must stay.
void GdsBackend::leave() {
    engine_->keep = std::move(files_);
    [[maybe_unused]] const Engine* left = engine_.release();
}

GdsBackend::~GdsBackend() {
    if (engine_ == nullptr) {
        return;
    }
    if (getpid() != process_) {  // forked: the threads are the parent's, nothing can be ended
        leave();
        return;
    }
    if (!engine_->stop(kStopSeconds)) {
        services_.log(LogLevel::WARN,
                      "cuFile still holds requests (a hung disk?); leaving "
                      "them to it");
        leave();
    }
}

// cuFile moves memory of a GPU that is not registered too, through its own buffers.
Result<std::unique_ptr<BackendMemory>> GdsBackend::registerBuffer(const MemoryRegion& region) {
    auto memory = std::make_unique<Memory>();
    if (region.type == MemType::DRAM) {
        return std::unique_ptr<BackendMemory>(std::move(memory));
    }
    const Status status = services_.devices().check(region.address, region.size, region.deviceId);
    if (!status.ok()) {
        return named(status);
    }
    memory->library = driver_->library;
    memory->services = &services_;
    memory->device = static_cast<int>(region.deviceId);
    const GpuScope gpu(services_, memory->device);
    if (!gpu.status().ok()) {
        return named(gpu.status());
    }
    const auto* const address = reinterpret_cast<const void*>(region.address);
    const CuFileError error = driver_->library->bufRegister(address, region.size, 0);
    if (error.code == 0) {
        memory->registered = address;
    } else if (error.code != kCuFileRegistered && !toldUnregistered_.exchange(true)) {
        services_.log(LogLevel::INFO, "registering " + std::to_string(region.size) +
                                          " bytes of GPU " + std::to_string(region.deviceId) +
                                          " with cuFile: " + cuFileText(error) +
                                          "; they go through cuFile's own buffers");
    }
    return std::unique_ptr<BackendMemory>(std::move(memory));
}

Result<std::unique_ptr<BackendMemory>> GdsBackend::registerMemory(const MemoryRegion& region) {
    if (region.type == MemType::DRAM || region.type == MemType::VRAM) {
        return registerBuffer(region);
    }
    if (region.type != MemType::FILE) {
        return named(Status::notSupported(std::string(memTypeName(region.type)) +
                                          " is not supported; DRAM, VRAM and FILE are"));
    }
    // O_DIRECT is tried with every file, whatever the metadata says of it.
    const Result<std::optional<posix::FileSpec>> path =
        posix::parseFileSpec(region.metadata, info_.name.c_str());
    if (!path.ok()) {
        return path.status();
    }
    Result<std::unique_ptr<File>> file =
        File::open(region, path.value(), files_,
                   [this](const std::string& text) { services_.log(LogLevel::INFO, text); });
    if (!file.ok()) {
        return named(file.status());
    }
    return std::unique_ptr<BackendMemory>(std::move(file).value());
}

Result<std::unique_ptr<BackendTransfer>> GdsBackend::prepareTransfer(const TransferPlan& plan) {
    if (const Status status = Job::check(plan); !status.ok()) {
        return named(status);
    }
    return std::unique_ptr<BackendTransfer>(std::make_unique<GdsTransfer>(plan, *this));
}

Result<std::vector<std::optional<std::map<std::string, std::string>>>> GdsBackend::query(
    std::span<const MemoryRegion> regions) {
    std::vector<std::optional<std::map<std::string, std::string>>> answers;
    answers.reserve(regions.size());
    for (const MemoryRegion& region : regions) {
        auto answer = posix::queryFile(region, info_.name.c_str());
        if (!answer.ok()) {
            return answer.status();
        }
        answers.push_back(std::move(answer).value());
    }
    return answers;
}

Result<std::vector<StorageEntry>> GdsBackend::list(std::string_view prefix, size_t limit) {
    return posix::listFiles(prefix, limit, info_.name.c_str());
}

Status GdsBackend::remove(std::string_view name) {
    return posix::removeFile(name, info_.name.c_str());
}

}  // namespace nixl::gds
