// See fabric_library.h.
#include "fabric_library.h"

#include <cstdlib>

#include <dlfcn.h>

namespace nixl::fabric {
namespace {

constexpr uint32_t kOldest = FI_VERSION(1, 11);  // threading and delivery as used here

// The symbol of the structures this was built with; a library of another ABI may have both.
template <typename Function>
void load(void* handle,
          const char* name,
          [[maybe_unused]] const char* version,
          Function& function,
          std::string& missing) {
    void* found = nullptr;
#if FI_MAJOR_VERSION == 1 && FI_MINOR_VERSION <= 17
    found = dlvsym(handle, name, version);
#endif
    if (found == nullptr) {
        found = dlsym(handle, name);
    }
    function = reinterpret_cast<Function>(found);
    if (found == nullptr) {
        missing += std::string(missing.empty() ? "" : " ") + name;
    }
}

}  // namespace

std::string FabricLibrary::error(long code) const {
    return strError(static_cast<int>(code < 0 ? -code : code));
}

Result<std::shared_ptr<const FabricLibrary>> openFabricLibrary() {
    const char* const wanted = std::getenv("NIXL_LIBFABRIC_LIBRARY");
    const bool given = wanted != nullptr && *wanted != '\0';
    const std::string name = given ? wanted : "libfabric.so.1";
    void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return Status::notFound("libfabric cannot be opened (" + std::string(why ? why : name) +
                                "); install libfabric1 (Debian, Ubuntu) or the EFA installer's, "
                                "or name the file in NIXL_LIBFABRIC_LIBRARY");
    }
    auto library = std::make_shared<FabricLibrary>();
    std::string missing;
    load(handle, "fi_getinfo", "FABRIC_1.3", library->getInfo, missing);
    load(handle, "fi_freeinfo", "FABRIC_1.3", library->freeInfo, missing);
    load(handle, "fi_dupinfo", "FABRIC_1.3", library->dupInfo, missing);
    load(handle, "fi_fabric", "FABRIC_1.1", library->openFabric, missing);
    load(handle, "fi_strerror", "FABRIC_1.0", library->strError, missing);
    load(handle, "fi_version", "FABRIC_1.0", library->getVersion, missing);
    if (!missing.empty()) {
        return Status::notSupported(name + " is no libfabric: it has no " + missing);
    }
    const uint32_t version = library->getVersion();
    library->version = std::to_string(FI_MAJOR(version)) + "." + std::to_string(FI_MINOR(version));
    Dl_info where{};
    library->path =
        dladdr(reinterpret_cast<void*>(library->getInfo), &where) != 0 && where.dli_fname != nullptr
            ? where.dli_fname
            : name;
    if (FI_VERSION_LT(version, kOldest)) {
        return Status::notSupported("libfabric " + library->version + " (" + library->path +
                                    ") is too old: 1.11 or later is needed");
    }
    return std::shared_ptr<const FabricLibrary>(std::move(library));
}

}  // namespace nixl::fabric
