// See ucx_machine.h.
#include "ucx_machine.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include <dlfcn.h>
#include <net/if.h>

#include "of_process.h"
#include "ucx_library.h"

namespace nixl::ucx {
namespace {

namespace fs = std::filesystem;

constexpr char kLibrary[] = "libucp.so.0";

bool there(const fs::path& path) {
    std::error_code ignored;
    return fs::exists(path, ignored);
}

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
}

// What the loader would find: in LD_LIBRARY_PATH, in its cache, in the folders it always looks at.
bool onSystem() {
    std::stringstream folders(environment("LD_LIBRARY_PATH") + ":/lib:/usr/lib:/lib64:/usr/lib64");
    for (std::string folder; std::getline(folders, folder, ':');) {
        if (!folder.empty() && there(fs::path(folder) / kLibrary)) {
            return true;
        }
    }
    std::ifstream cache("/etc/ld.so.cache", std::ios::binary);
    const std::string names{std::istreambuf_iterator<char>(cache), {}};
    return names.find(kLibrary) != std::string::npos;
}

fs::path rdmaFolder() {
    const std::string wanted = environment("NIXL_RDMA_DEVICES");
    return wanted.empty() ? "/sys/class/infiniband" : wanted;
}

}  // namespace

bool haveRdmaDevices() {
    std::error_code error;
    const bool empty = fs::is_empty(rdmaFolder(), error);
    return !error && !empty;
}

std::vector<std::string> networkDevices() {
    std::vector<std::string> names;
    // Of this network namespace; /sys may show another one's.
    if (struct if_nameindex* const all = if_nameindex(); all != nullptr) {
        for (const struct if_nameindex* one = all; one->if_name != nullptr; ++one) {
            names.emplace_back(one->if_name);
        }
        if_freenameindex(all);
    }
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(rdmaFolder(), error)) {
        names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
}

bool ucxInstalled() {
    if (const std::string wanted = environment("NIXL_UCX_LIBRARY"); !wanted.empty()) {
        return there(wanted);
    }
    return !ucxPackageFolders().empty() || onSystem();
}

bool verbsLoaded(const std::string& path) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(fs::path(path).parent_path() / "ucx", error)) {
        if (!entry.path().filename().string().starts_with("libuct_ib.so")) {
            continue;
        }
        if (void* const loaded = dlopen(entry.path().c_str(), RTLD_LAZY | RTLD_NOLOAD);
            loaded != nullptr) {
            dlclose(loaded);
            return true;
        }
    }
    return false;
}

void logOnce(PluginServices& services, LogLevel level, const std::string& message) {
    static constinit OfProcess<std::set<std::string>> said;
    if (!services.logs(level)) {
        return;
    }
    if (said.hold().value.insert(message).second) {
        services.log(level, message);
    }
}

}  // namespace nixl::ucx
