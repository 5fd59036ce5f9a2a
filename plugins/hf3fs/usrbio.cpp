// Opening the 3FS client; see usrbio.h.
#include "usrbio.h"

#include <atomic>
#include <cstdlib>
#include <memory>

#include <dlfcn.h>

namespace nixl::hf3fs {

namespace {

constexpr const char* kName = "libhf3fs_api_shared.so";

template <typename Function>
void load(void* handle, const char* name, Function& function, std::string* missing) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr && missing != nullptr) {
        *missing += std::string(missing->empty() ? "" : " ") + name;
    }
}

std::string loadAll(void* handle, Library& all) {
    std::string missing;
    load(handle, "hf3fs_is_hf3fs", all.isHf3fs, &missing);
    load(handle, "hf3fs_extract_mount_point", all.extractMountPoint, &missing);
    load(handle, "hf3fs_iovcreate", all.iovCreate, &missing);
    load(handle, "hf3fs_iovwrap", all.iovWrap, &missing);
    load(handle, "hf3fs_iovdestroy", all.iovDestroy, &missing);
    load(handle, "hf3fs_iorcreate4", all.iorCreate4, nullptr);
    load(handle, "hf3fs_iorcreate", all.iorCreate, all.iorCreate4 == nullptr ? &missing : nullptr);
    load(handle, "hf3fs_iordestroy", all.iorDestroy, &missing);
    load(handle, "hf3fs_reg_fd", all.regFd, &missing);
    load(handle, "hf3fs_dereg_fd", all.deregFd, &missing);
    load(handle, "hf3fs_prep_io", all.prepIo, &missing);
    load(handle, "hf3fs_submit_ios", all.submitIos, &missing);
    load(handle, "hf3fs_wait_for_ios", all.waitForIos, &missing);
    return missing;
}

Result<std::unique_ptr<Library>> tryOpen() {
    const char* const wanted = std::getenv("NIXL_HF3FS_LIBRARY");
    const std::string path = wanted != nullptr && *wanted != '\0' ? wanted : kName;
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return Status::notFound("HF3FS: the 3FS client library cannot be opened (" +
                                std::string(why != nullptr ? why : path) +
                                "); install the 3FS client, or name its " + kName +
                                " in NIXL_HF3FS_LIBRARY");
    }
    auto all = std::make_unique<Library>();
    if (const std::string missing = loadAll(handle, *all); !missing.empty()) {
        dlclose(handle);
        return Status::notFound("HF3FS: the 3FS client library " + path + " has no " + missing);
    }
    Dl_info where{};
    if (dladdr(reinterpret_cast<void*>(all->prepIo), &where) != 0) {
        all->path = where.dli_fname;
    }
    return all;
}

}  // namespace

Result<const Library*> openLibrary() {
    static constinit std::atomic<const Library*> opened{nullptr};
    const Library* known = opened.load();
    if (known != nullptr) {
        return known;
    }
    Result<std::unique_ptr<Library>> found = tryOpen();
    if (!found.ok()) {
        return found.status();
    }
    if (opened.compare_exchange_strong(known, found.value().get())) {
        known = found.value().release();  // for the life of the process
    }
    return known;
}

}  // namespace nixl::hf3fs
