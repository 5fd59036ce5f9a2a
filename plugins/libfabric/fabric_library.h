// libfabric, opened at run time: found, never linked, never closed. Threads: any.
#pragma once

#include <memory>
#include <string>

#include <rdma/fabric.h>

#include "nixl/error.h"

namespace nixl::fabric {

// The functions used; all others are reached through the objects these give.
struct FabricLibrary {
    std::string path;
    std::string version;  // "1.17"

    decltype(&fi_getinfo) getInfo = nullptr;
    decltype(&fi_freeinfo) freeInfo = nullptr;
    decltype(&fi_dupinfo) dupInfo = nullptr;
    decltype(&fi_fabric) openFabric = nullptr;
    decltype(&fi_strerror) strError = nullptr;
    decltype(&fi_version) getVersion = nullptr;

    std::string error(long code) const;  // of a negative or positive fi_errno
};

// Opens what NIXL_LIBFABRIC_LIBRARY names (a file), else libfabric.so.1 of the system. NOT_FOUND
// says what the loader said and what to install; NOT_SUPPORTED that it is too old.
Result<std::shared_ptr<const FabricLibrary>> openFabricLibrary();

}  // namespace nixl::fabric
