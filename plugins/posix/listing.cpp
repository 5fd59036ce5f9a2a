// Names of files below a path, and removing one: what list_storage and remove_storage do. See
// paths.h. Pure calls of the system; any thread.
#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errno_text.h"
#include "paths.h"

namespace nixl::posix {

namespace {

Status failed(const char* plugin, const char* what, const std::string& path, int error) {
    const auto code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::NOT_FOUND
                      : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::NOT_ALLOWED
                                                                            : ErrorCode::BACKEND;
    return {code, std::string(plugin) + ": " + what + " \"" + path + "\": " + errnoText(error),
            error};
}

struct CloseFolder {
    void operator()(DIR* folder) const { closedir(folder); }
};

// Entries of one folder by name; symbolic links are not followed. A folder that went meanwhile
// has none.
Status readFolder(const char* plugin, const std::string& folder, std::vector<std::string>& names) {
    const std::unique_ptr<DIR, CloseFolder> open(opendir(folder.c_str()));
    if (open == nullptr) {
        return errno == ENOENT || errno == ENOTDIR ? Status()
                                                   : failed(plugin, "list", folder, errno);
    }
    while (const dirent* const entry = readdir(open.get())) {  // NOLINT(concurrency-mt-unsafe)
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") {
            names.emplace_back(name);
        }
    }
    std::sort(names.begin(), names.end());
    return {};
}

}  // namespace

Result<std::vector<StorageEntry>> listFiles(std::string_view prefix,
                                            size_t limit,
                                            const char* plugin) {
    if (prefix.empty() || prefix.front() != '/') {
        return Status::invalidParam(std::string(plugin) + ": list \"" + std::string(prefix) +
                                    "\": the prefix must be a path from the root on");
    }
    std::vector<StorageEntry> found;
    // Folders still to be read; only of the first one names may not match.
    std::vector<std::string> folders{std::string(prefix.substr(0, prefix.rfind('/') + 1))};
    while (!folders.empty() && found.size() < limit) {
        const std::string folder = std::move(folders.back());
        folders.pop_back();
        std::vector<std::string> names;
        NIXL_RETURN_IF_ERROR(readFolder(plugin, folder, names));
        std::vector<std::string> below;
        for (const std::string& name : names) {
            std::string path = folder + name;
            struct stat info {};
            if (!path.starts_with(prefix) || lstat(path.c_str(), &info) < 0) {
                continue;
            }
            if (S_ISDIR(info.st_mode)) {
                below.push_back(path + "/");
            } else if (S_ISREG(info.st_mode) && found.size() < limit) {
                found.push_back({std::move(path), attributesOf(info)});
            }
        }
        folders.insert(folders.end(), below.rbegin(), below.rend());
    }
    return found;
}

Status removeFile(std::string_view name, const char* plugin) {
    Result<std::optional<FileSpec>> spec = parseFileSpec(name, plugin);
    if (!spec.ok()) {
        return spec.status();
    }
    const std::optional<FileSpec>& parsed = spec.value();
    const std::string path = parsed ? parsed->path : std::string(name);
    struct stat info {};
    if (lstat(path.c_str(), &info) < 0) {
        return failed(plugin, "remove", path, errno);
    }
    if (!S_ISREG(info.st_mode)) {
        return Status::notAllowed(std::string(plugin) + ": remove \"" + path +
                                  "\": not a regular file");
    }
    return unlink(path.c_str()) < 0 ? failed(plugin, "remove", path, errno) : Status();
}

}  // namespace nixl::posix
