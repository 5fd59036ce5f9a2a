// See ucx_machine.h.
#include "ucx_machine.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include <dlfcn.h>

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

}  // namespace

bool haveRdmaDevices() {
    const std::string wanted = environment("NIXL_RDMA_DEVICES");
    const fs::path folder(wanted.empty() ? "/sys/class/infiniband" : wanted);
    std::error_code error;
    const bool empty = fs::is_empty(folder, error);
    return !error && !empty;
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
