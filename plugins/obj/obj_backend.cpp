// See obj_backend.h.
#include "obj_backend.h"

#include <curl/curl.h>

#include "asking.h"
#include "parameters.h"

namespace nixl::obj {

namespace {

constexpr size_t kMaxKey = 1024;  // bytes, S3's own limit
// For uploads that are being removed when the backend ends.
constexpr std::chrono::seconds kDrain{5};

const MemType kMemoryTypes[] = {MemType::DRAM, MemType::OBJECT};

// The key of a region: its metadata, else the device id as a number.
Result<std::string> keyOf(const MemoryRegion& region) {
    std::string key =
        region.metadata.empty() ? std::to_string(region.deviceId) : std::string(region.metadata);
    if (key.size() > kMaxKey) {
        return Status::invalidParam("OBJ: the key \"" + key.substr(0, 64) + "…\" has " +
                                    std::to_string(key.size()) + " bytes; the longest is " +
                                    std::to_string(kMaxKey));
    }
    return key;
}

}  // namespace

const PluginTable kPluginTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "OBJ",
    nullptr,
    "1.0",
    "objects of S3 and of stores that speak its protocol",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kParameters,
    std::size(kParameters),
    &ObjBackend::create,
    nullptr,
};

Result<std::unique_ptr<Backend>> ObjBackend::create(const Parameters& parameters,
                                                    PluginServices& services) {
    std::unique_ptr<ObjBackend> backend(new ObjBackend(services));
    NIXL_RETURN_IF_ERROR(backend->start(parameters));
    return std::unique_ptr<Backend>(std::move(backend));
}

Status ObjBackend::start(const Parameters& parameters) {
    PluginServices& services = services_;
    if (services.devices().likely()) {
        info_.memoryTypes.push_back(MemType::VRAM);
    }
    static const CURLcode kReady = curl_global_init(CURL_GLOBAL_DEFAULT);
    if (kReady != CURLE_OK) {
        return Status::backend(std::string("OBJ: libcurl: ") + curl_easy_strerror(kReady));
    }
    const Profile profile = chooseProfile(parameters);
    std::vector<std::string> notes;
    auto settings = readSettings(parameters, profile, notes);
    if (!settings.ok()) {
        return settings.status();
    }
    HttpOptions http;
    http.caBundle = settings.value().caBundle;
    http.connectTimeout = settings.value().connectTimeout;
    http.idleTimeout = settings.value().idleTimeout;
    store_ = std::make_unique<Store>(std::move(settings).value(), services, http);
    for (const std::string& note : notes) {
        services.log(LogLevel::INFO, note.substr(5));
    }
    if (!parameters.flag("anonymous")) {
        store_->credentials = std::make_unique<CredentialSource>(
            providerChain(parameters, profile, http),
            [&services](LogLevel level, const std::string& text) { services.log(level, text); });
        NIXL_RETURN_IF_ERROR(store_->credentials->open());
    }
    return store_->scheduler.open();
}

ObjBackend::~ObjBackend() {
    if (store_ == nullptr) {
        return;
    }
    if (getpid() != process_) {  // forked: the threads are the parent's, nothing can be ended
        store_->scheduler.abandon();
        if (store_->credentials != nullptr) {
            store_->credentials->abandon();
        }
        [[maybe_unused]] const Store* left = store_.release();
        return;
    }
    store_->scheduler.drain(kDrain);
    store_->scheduler.stop();
}

Result<std::unique_ptr<BackendMemory>> ObjBackend::registerMemory(const MemoryRegion& region) {
    if (region.type == MemType::DRAM) {
        return std::unique_ptr<BackendMemory>(std::make_unique<Memory>());
    }
    if (region.type == MemType::VRAM) {
        const Status status =
            services_.devices().check(region.address, region.size, region.deviceId);
        if (!status.ok()) {
            return Status(status.code(), "OBJ: " + status.message());
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<Memory>());
    }
    if (region.type != MemType::OBJECT) {
        return Status::notSupported(std::string("OBJ: ") + memTypeName(region.type) +
                                    " is not supported; DRAM, VRAM and OBJ are");
    }
    auto key = keyOf(region);
    if (!key.ok()) {
        return key.status();
    }
    return std::unique_ptr<BackendMemory>(std::make_unique<Memory>(std::move(key).value()));
}

Result<std::unique_ptr<BackendTransfer>> ObjBackend::prepareTransfer(const TransferPlan& plan) {
    auto layout = makeLayout(plan, store_->settings);
    if (!layout.ok()) {
        return layout.status();
    }
    return std::unique_ptr<BackendTransfer>(
        std::make_unique<ObjTransfer>(std::move(layout).value(), plan.op, *store_));
}

Result<std::vector<std::optional<std::map<std::string, std::string>>>> ObjBackend::query(
    std::span<const MemoryRegion> regions) {
    std::vector<std::string> keys;
    keys.reserve(regions.size());
    for (const MemoryRegion& region : regions) {
        auto key = keyOf(region);
        if (!key.ok()) {
            return key.status();
        }
        keys.push_back(std::move(key).value());
    }
    return lookAt(*store_, keys);
}

Result<std::vector<StorageEntry>> ObjBackend::list(std::string_view prefix, size_t limit) {
    return listObjects(*store_, prefix, limit);
}

Status ObjBackend::remove(std::string_view name) {
    const std::string key(name);
    return removeObjects(*store_, {&key, 1}).front();
}

std::vector<Status> ObjBackend::removeMany(std::span<const std::string> names) {
    return removeObjects(*store_, names);
}

std::shared_ptr<Work> ObjTransfer::current() const {
    const std::lock_guard lock(mutex_);
    return work_;
}

Status ObjTransfer::post(CompletionPtr completion,
                         std::string_view /*notification*/,
                         bool /*has_notification*/) {
    auto work = std::make_shared<Work>(store_, layout_, op_, std::move(completion));
    {
        const std::lock_guard lock(mutex_);
        work_ = work;
    }
    if (work->canceled()) {
        work->cancel();
        return {};
    }
    work->start();
    return {};
}

void ObjTransfer::cancel() {
    if (const std::shared_ptr<Work> work = current()) {
        work->cancel();
    }
}

std::optional<uint64_t> ObjTransfer::bytesDone() const {
    const std::shared_ptr<Work> work = current();
    return work != nullptr ? work->bytes() : 0;
}

TransferDescription ObjTransfer::describe() const {
    const size_t units = op_ == OpType::READ ? layout_.ranges.size() : layout_.objects.size();
    return {"",
            std::to_string(units) + (op_ == OpType::READ ? " ranges" : " objects") +
                (layout_.gpu ? ", GPU memory through page-locked buffers" : ""),
            store_.settings.endpoint.text() + "/" + store_.settings.bucket};
}

}  // namespace nixl::obj

NIXL_EXPORT_PLUGIN(nixl::obj::kPluginTable)
