// See ucx_library.h.
#include "ucx_library.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include <dlfcn.h>
#include <sys/stat.h>

#include "of_process.h"

namespace nixl::ucx {
namespace {

// Its siblings (libuct, libucs, libucm) come along: they need each other's symbols, so they can
// only be opened as its dependencies, which lie beside it or on the system's path.
void* openFolder(const std::string& folder, std::string& tried) {
    const std::string path = (folder.empty() ? "" : folder + "/") + "libucp.so.0";
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        tried += std::string(tried.empty() ? "" : "; ") + (why != nullptr ? why : path);
    }
    return handle;
}

template <typename Function>
bool load(void* handle, const char* name, Function& function, std::string& missing) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) {
        missing += std::string(missing.empty() ? "" : " ") + name;
    }
    return function != nullptr;
}

std::string loadAll(void* handle, UcxLibrary& ucx) {
    std::string missing;
    load(handle, "ucp_get_version_string", ucx.getVersionString, missing);
    load(handle, "ucp_config_read", ucx.configRead, missing);
    load(handle, "ucp_config_modify", ucx.configModify, missing);
    load(handle, "ucp_config_release", ucx.configRelease, missing);
    load(handle, "ucp_init_version", ucx.initVersion, missing);
    load(handle, "ucp_cleanup", ucx.cleanup, missing);
    load(handle, "ucp_worker_create", ucx.workerCreate, missing);
    load(handle, "ucp_worker_destroy", ucx.workerDestroy, missing);
    load(handle, "ucp_worker_get_address", ucx.workerGetAddress, missing);
    load(handle, "ucp_worker_release_address", ucx.workerReleaseAddress, missing);
    load(handle, "ucp_worker_progress", ucx.workerProgress, missing);
    load(handle, "ucp_worker_get_efd", ucx.workerGetEfd, missing);
    load(handle, "ucp_worker_arm", ucx.workerArm, missing);
    load(handle, "ucp_ep_create", ucx.epCreate, missing);
    load(handle, "ucp_ep_close_nbx", ucx.epCloseNbx, missing);
    load(handle, "ucp_ep_flush_nbx", ucx.epFlushNbx, missing);
    load(handle, "ucp_ep_rkey_unpack", ucx.epRkeyUnpack, missing);
    load(handle, "ucp_rkey_destroy", ucx.rkeyDestroy, missing);
    load(handle, "ucp_context_query", ucx.contextQuery, missing);
    load(handle, "ucp_mem_map", ucx.memMap, missing);
    load(handle, "ucp_mem_unmap", ucx.memUnmap, missing);
    load(handle, "ucp_rkey_pack", ucx.rkeyPack, missing);
    load(handle, "ucp_rkey_buffer_release", ucx.rkeyBufferRelease, missing);
    load(handle, "ucp_put_nbx", ucx.putNbx, missing);
    load(handle, "ucp_get_nbx", ucx.getNbx, missing);
    load(handle, "ucp_request_check_status", ucx.requestCheckStatus, missing);
    load(handle, "ucp_request_free", ucx.requestFree, missing);
    load(handle, "ucs_status_string", ucx.statusString, missing);
    return missing;
}

Result<std::unique_ptr<UcxLibrary>> tryOpen() {
    std::string tried;
    void* handle = nullptr;
    if (const char* wanted = std::getenv("NIXL_UCX_LIBRARY");
        wanted != nullptr && *wanted != '\0') {
        // A file or its folder; nothing else is tried.
        std::string folder = wanted;
        struct stat info {};
        if (stat(wanted, &info) != 0 || !S_ISDIR(info.st_mode)) {
            const size_t cut = folder.rfind('/');
            folder = cut == std::string::npos ? "." : folder.substr(0, std::max(cut, size_t{1}));
        }
        handle = openFolder(folder, tried);
    } else {
        for (const std::string& folder : ucxPackageFolders()) {
            handle = handle != nullptr ? handle : openFolder(folder, tried);
        }
        handle = handle != nullptr ? handle : openFolder({}, tried);
    }
    if (handle == nullptr) {
        return Status::notFound("the UCX library cannot be opened (" + tried +
                                "); install libucx-cu13 (pip) or libucx0 (Debian), or name its "
                                "folder in NIXL_UCX_LIBRARY");
    }
    auto ucx = std::make_unique<UcxLibrary>();
    if (const std::string missing = loadAll(handle, *ucx); !missing.empty()) {
        return Status::notFound("the UCX library found is too old: it has no " + missing);
    }
    Dl_info where{};
    if (dladdr(reinterpret_cast<void*>(ucx->initVersion), &where) != 0) {
        ucx->path = where.dli_fname;
    }
    ucx->version = ucx->getVersionString();
    return ucx;
}

}  // namespace

std::vector<std::string> ucxPackageFolders() {
    std::vector<std::string> folders;
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&openUcx), &self) == 0 || self.dli_fname == nullptr) {
        return folders;
    }
    std::string path = self.dli_fname;
    for (size_t cut = path.rfind('/'); cut != std::string::npos && cut > 0; cut = path.rfind('/')) {
        path.resize(cut);
        struct stat info {};
        const std::string candidate = path + "/libucx/lib";
        if (stat((candidate + "/libucp.so.0").c_str(), &info) == 0) {
            folders.push_back(candidate);
        }
    }
    return folders;
}

Result<const UcxLibrary*> openUcx() {
    static constinit OfProcess<const UcxLibrary*> library;
    const auto held = library.hold();
    const UcxLibrary*& opened = held.value;
    if (opened == nullptr) {
        Result<std::unique_ptr<UcxLibrary>> found = tryOpen();
        if (!found.ok()) {
            return found.status();
        }
        opened = std::move(found).value().release();  // for the life of the process
    }
    return opened;
}

}  // namespace nixl::ucx
