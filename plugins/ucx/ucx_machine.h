// What this machine has for UCX: RDMA devices, the library, its verbs. Threads: any.
#pragma once

#include <string>
#include <vector>

#include "nixl/services.h"

namespace nixl::ucx {

inline constexpr char kInstallUcx[] =
    "For lane ucx install libucx0 (Debian, Ubuntu) or libucx-cu13 (pip), or name its folder in "
    "NIXL_UCX_LIBRARY";
inline constexpr char kInstallVerbs[] =
    "Install a UCX with verbs (Debian, Ubuntu: libucx0 ibverbs-providers; the PyPI package has "
    "none), or name its folder in NIXL_UCX_LIBRARY";

// In /sys/class/infiniband, or in the folder that NIXL_RDMA_DEVICES names (for tests).
bool haveRdmaDevices();

// Names that UCX_NET_DEVICES may have here, without ports: network interfaces and RDMA devices.
std::vector<std::string> networkDevices();

// Whether openUcx() has something to open, without opening it: a library runs code when opened.
bool ucxInstalled();

// Whether the UCX that was opened from `path` has loaded its verbs. REQUIRES: a context exists.
bool verbsLoaded(const std::string& path);

// Logs a message of this text once in this process.
void logOnce(PluginServices& services, LogLevel level, const std::string& message);

}  // namespace nixl::ucx
