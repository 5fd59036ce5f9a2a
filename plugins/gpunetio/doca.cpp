// See doca.h.
#include "doca.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include <dlfcn.h>
#include <sys/stat.h>

namespace nixl::gpunetio {
namespace {

// In the order in which they need each other.
constexpr const char* kLibraries[] = {"libibverbs.so.1", "libdoca_common.so", "libdoca_verbs.so",
                                      "libdoca_gpunetio.so"};
#if defined(__x86_64__)
constexpr char kDocaFolder[] = "/opt/mellanox/doca/lib/x86_64-linux-gnu/";
#else
constexpr char kDocaFolder[] = "/opt/mellanox/doca/lib/aarch64-linux-gnu/";
#endif
constexpr char kAdvice[] =
    "; install DOCA (doca-sdk-gpunetio), or name the folder of its libraries in NIXL_DOCA_LIBRARY";

void* openOne(const std::string& path, std::string& tried) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        tried += (tried.empty() ? "" : "; ") + std::string(why != nullptr ? why : path);
    }
    return handle;
}

Status openAll(std::vector<void*>& handles) {
    const char* const variable = std::getenv("NIXL_DOCA_LIBRARY");
    const std::string wanted = variable == nullptr ? "" : variable;
    struct stat info {};
    if (!wanted.empty() && (stat(wanted.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))) {
        std::string tried;
        handles.push_back(openOne(wanted, tried));
        return handles.back() != nullptr
                   ? Status()
                   : Status::notFound("GPUNETIO: NIXL_DOCA_LIBRARY cannot be opened: " + tried);
    }
    for (const std::string name : kLibraries) {
        std::string tried;
        void* handle = openOne(wanted.empty() ? name : wanted + "/" + name, tried);
        if (handle == nullptr && wanted.empty()) {
            handle = openOne(kDocaFolder + name, tried);
        }
        if (handle == nullptr && !wanted.empty() && name == kLibraries[0]) {
            handle = openOne(name, tried);  // it comes with the system
        }
        if (handle == nullptr) {
            return Status::notFound("GPUNETIO: " + name + " cannot be opened (" + tried + ")" +
                                    kAdvice);
        }
        handles.push_back(handle);
    }
    return {};
}

Result<std::unique_ptr<Doca>> tryOpen() {
    std::vector<void*> handles;
    NIXL_RETURN_IF_ERROR(openAll(handles));
    auto doca = std::make_unique<Doca>();
    std::string missing;
    const auto find = [&](const char* symbol) {
        for (void* const handle : handles) {
            if (void* const found = dlsym(handle, symbol); found != nullptr) {
                return found;
            }
        }
        missing += std::string(" ") + symbol;
        return static_cast<void*>(nullptr);
    };
#define NIXL_DOCA_LOAD(result, field, symbol, arguments) \
    doca->field = reinterpret_cast<decltype(doca->field)>(find(symbol));
    NIXL_DOCA_FUNCTIONS(NIXL_DOCA_LOAD)
#undef NIXL_DOCA_LOAD
    Dl_info where{};
    const void* const known = dlsym(handles.back(), "doca_gpu_create");
    if (known != nullptr && dladdr(known, &where) != 0) {
        doca->path = where.dli_fname;
    }
    if (!missing.empty()) {
        return Status::notFound("GPUNETIO: the DOCA found (" + doca->path +
                                ") is too old, or another one: it has no" + missing + kAdvice);
    }
    return doca;
}

}  // namespace

Status Doca::check(int error, const std::string& what) const {
    return error == 0 ? Status()
                      : Status::backend("GPUNETIO: " + what + ": DOCA says: " + describe(error));
}

Result<const Doca*> openDoca() {
    static constinit std::atomic<const Doca*> opened{nullptr};
    const Doca* known = opened.load();
    if (known != nullptr) {
        return known;
    }
    Result<std::unique_ptr<Doca>> found = tryOpen();
    if (!found.ok()) {
        return found.status();
    }
    if (opened.compare_exchange_strong(known, found.value().get())) {
        known = found.value().release();  // for the life of the process
    }
    return known;
}

}  // namespace nixl::gpunetio
