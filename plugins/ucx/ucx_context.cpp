// See ucx_context.h.
#include "ucx_context.h"

#include <cstdlib>

namespace nixl::ucx {
namespace {

// 1.22 and what follows it; who does not know the setting warns of it (1.13).
bool crashesInTcpPut(const std::string& version) {
    char* rest = nullptr;
    const unsigned long major = std::strtoul(version.c_str(), &rest, 10);
    const unsigned long minor = *rest == '.' ? std::strtoul(rest + 1, nullptr, 10) : 0;
    return major > 1 || (major == 1 && minor >= 22);
}

struct ConfigGuard {
    const UcxLibrary& ucx;
    ucp_config_t* config = nullptr;
    ~ConfigGuard() {
        if (config != nullptr) {
            ucx.configRelease(config);
        }
    }
};

}  // namespace

Result<std::unique_ptr<UcxContext>> UcxContext::create(const UcxLibrary& ucx,
                                                       UcxOptions options,
                                                       const std::string& devices) {
    if (!devices.empty()) {
        options.settings["NET_DEVICES"] = devices;
    }
    std::unique_ptr<UcxContext> made(new UcxContext(ucx, std::move(options)));
    NIXL_RETURN_IF_ERROR(made->open());
    return made;
}

UcxContext::~UcxContext() {
    if (handle_ != nullptr) {
        ucx_.cleanup(handle_);
    }
}

std::string UcxContext::text(const std::string& what, ucs_status_t status) const {
    return "UCX " + ucx_.version + ": " + what + ": " + ucx_.statusString(status);
}

bool UcxContext::given(const std::string& name) const {
    return options_.settings.contains(name) || std::getenv(("UCX_" + name).c_str()) != nullptr;
}

Status UcxContext::open() {
    ConfigGuard guard{ucx_};
    ucs_status_t status = ucx_.configRead(nullptr, nullptr, &guard.config);
    if (status != UCS_OK) {
        return Status::backend(text("reading its configuration", status));
    }
    // With error mode PEER the rendezvous protocol turns puts into emulation, many times slower.
    if (options_.peerErrors && !given("RNDV_THRESH")) {
        ucx_.configModify(guard.config, "RNDV_THRESH", "inf");
    }
    // UCX 1.22.0 can crash the target of a PUT over tcp (in uct_tcp_ep_progress_put_rx, seen with
    // eight threads over two workers); without it active messages carry the bytes.
    if (crashesInTcpPut(ucx_.version) && !given("TCP_PUT_ENABLE")) {
        ucx_.configModify(guard.config, "TCP_PUT_ENABLE", "n");
    }
    for (const auto& [name, value] : options_.settings) {
        status = ucx_.configModify(guard.config, name.c_str(), value.c_str());
        if (status != UCS_OK) {
            return Status::invalidParam(text("UCX_" + name + "=\"" + value + "\"", status));
        }
    }
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
    params.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
    params.mt_workers_shared = 1;
    status = ucx_.initVersion(UCP_API_MAJOR, UCP_API_MINOR, &params, guard.config, &handle_);
    const std::string devices = settingOf(options_, "NET_DEVICES");
    const std::string what = devices.empty() ? "" : " with UCX_NET_DEVICES=\"" + devices + "\"";
    return status == UCS_OK ? Status() : Status::backend(text("starting" + what, status));
}

// A library without its CUDA modules would take such memory for the host's, and touch it.
Status UcxContext::takesGpus() const {
    ucp_context_attr_t attributes{};
    attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
    const ucs_status_t status = ucx_.contextQuery(handle_, &attributes);
    if (status != UCS_OK) {
        return Status::backend(text("asking for its memory types", status));
    }
    return (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0
               ? Status()
               : Status::notSupported("UCX " + ucx_.version + " (" + ucx_.path +
                                      ") cannot take GPU memory: it has no CUDA modules, or they "
                                      "find no GPU");
}

Result<UcxContext::Mapped> UcxContext::map(const MemoryRegion& region) {
    ucp_mem_map_params_t params{};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
    params.address = reinterpret_cast<void*>(region.address);
    params.length = region.size;
    if (region.type == MemType::VRAM) {
        NIXL_RETURN_IF_ERROR(takesGpus());
        params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        params.memory_type = UCS_MEMORY_TYPE_CUDA;
    }
    Mapped mapped;
    ucs_status_t status = ucx_.memMap(handle_, &params, &mapped.handle);
    if (status != UCS_OK) {
        return Status::backend(
            text("mapping " + std::to_string(region.size) + " bytes of " + memTypeName(region.type),
                 status));
    }
    void* key = nullptr;
    size_t length = 0;
    status = ucx_.rkeyPack(handle_, mapped.handle, &key, &length);
    if (status != UCS_OK) {
        ucx_.memUnmap(handle_, mapped.handle);
        return Status::backend(text("packing a remote key", status));
    }
    mapped.key.assign(static_cast<const char*>(key), length);
    ucx_.rkeyBufferRelease(key);
    return mapped;
}

void UcxContext::unmap(ucp_mem_h handle) {
    ucx_.memUnmap(handle_, handle);
}

}  // namespace nixl::ucx
