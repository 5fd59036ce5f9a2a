// See plugin_files.h.
#include "backend/plugin_files.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::backend {
namespace {

bool isFolder(const std::string& path) {
    struct stat status {};
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
           access(path.c_str(), R_OK | X_OK) == 0;
}

// The folder of the shared library (or program) that holds this function; empty if unknown.
std::string ownFolder() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&ownFolder), &info) == 0 ||
        info.dli_fname == nullptr) {
        return {};
    }
    char resolved[PATH_MAX];
    if (realpath(info.dli_fname, resolved) == nullptr &&
        realpath("/proc/self/exe", resolved) == nullptr) {
        return {};
    }
    const std::string path = resolved;
    return path.substr(0, path.rfind('/'));
}

void addFolder(std::vector<PluginFolder>& folders, std::string path, const char* why) {
    for (const PluginFolder& known : folders) {
        if (known.path == path) {
            return;
        }
    }
    const bool readable = isFolder(path);
    folders.push_back({std::move(path), why, readable});
}

// The package name that Debian's rules give to the library `soname`: libfoo.so.4 is in libfoo4.
std::string debianPackage(const std::string& soname) {
    const size_t so = soname.find(".so");
    if (so == std::string::npos) {
        return {};
    }
    std::string package = soname.substr(0, so);
    const std::string version = soname.size() > so + 4 ? soname.substr(so + 4) : "";
    if (!version.empty() && std::isdigit(static_cast<unsigned char>(package.back())) != 0) {
        package += '-';
    }
    package += version;
    std::replace(package.begin(), package.end(), '_', '-');
    for (char& c : package) {
        c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    return package;
}

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

}  // namespace

std::string_view pluginFilePrefix(PluginKind kind) {
    return kind == PluginKind::BACKEND ? "libplugin_" : "libtelemetry_exporter_";
}

std::vector<PluginFolder> pluginFolders() {
    std::vector<PluginFolder> folders;
    if (const char* given = std::getenv("NIXL_PLUGIN_DIR"); given != nullptr) {
        std::string_view rest = given;
        while (!rest.empty()) {
            const size_t end = std::min(rest.find(':'), rest.size());
            if (end > 0) {
                addFolder(folders, std::string(rest.substr(0, end)), "NIXL_PLUGIN_DIR");
            }
            rest.remove_prefix(std::min(end + 1, rest.size()));
        }
    }
    if (const std::string own = ownFolder(); !own.empty()) {
        addFolder(folders, own + "/plugins", "beside the library");
        addFolder(folders, own + "/nixl/plugins", "beside the library");
    }
    return folders;
}

Result<std::vector<PluginFile>> pluginFiles(const std::string& folder, PluginKind kind) {
    constexpr std::string_view kSuffix = ".so";
    const std::string_view prefix = pluginFilePrefix(kind);
    std::vector<PluginFile> files;
    DIR* const directory = opendir(folder.c_str());
    if (directory == nullptr) {
        const int error = errno;
        if (error == EMFILE || error == ENFILE || error == ENOMEM) {
            return Status::backend(folder + ": cannot be read: " + std::strerror(error), error);
        }
        return files;
    }
    while (const dirent* entry = readdir(directory)) {
        const std::string_view file = entry->d_name;
        if (file.size() > prefix.size() + kSuffix.size() && file.starts_with(prefix) &&
            file.ends_with(kSuffix)) {
            const std::string_view name =
                file.substr(prefix.size(), file.size() - prefix.size() - kSuffix.size());
            files.push_back({std::string(name), folder + "/" + std::string(file)});
        }
    }
    closedir(directory);
    std::sort(files.begin(), files.end(),
              [](const PluginFile& a, const PluginFile& b) { return a.path < b.path; });
    return files;
}

bool mayBePlugin(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return true;
    }
    struct stat status {};
    bool found = true;
    if (fstat(fd, &status) == 0 && status.st_size > 0) {
        const auto size = static_cast<size_t>(status.st_size);
        void* const data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data != MAP_FAILED) {
            // With the final zero: one whole name of the string table.
            found = memmem(data, size, kPluginSymbol, std::strlen(kPluginSymbol) + 1) != nullptr;
            munmap(data, size);
        }
    }
    close(fd);
    return found;
}

std::string loadHint(std::string_view message) {
    if (contains(message, "cannot open shared object file")) {
        const std::string library(message.substr(0, message.find(':')));
        const size_t so = library.find(".so");
        if (library.find('/') != std::string::npos || so == std::string::npos) {
            return {};
        }
        return "install what provides " + library + " (Debian, Ubuntu: usually apt install " +
               debianPackage(library) + ", else apt-file search " + library +
               "; Fedora: dnf install '*/" + library + "'), or name its folder in LD_LIBRARY_PATH";
    }
    if (contains(message, "undefined symbol")) {
        return contains(message, "nixl") ? "it was built against another version of this library: "
                                           "rebuild it"
                                         : "a library it needs is older than the one it was built "
                                           "with: update that library or rebuild the plugin";
    }
    if (contains(message, "version `")) {
        return "it was built on a newer system: rebuild it here or update the library named";
    }
    if (contains(message, "wrong ELF class") || contains(message, "ELF header") ||
        contains(message, "file too short")) {
        return "the file is damaged or for another kind of machine: install it again";
    }
    return {};
}

}  // namespace nixl::backend
