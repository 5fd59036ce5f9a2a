// What query_memory, list_storage and remove_storage do, on the file system; see file.h. Pure calls
// of the system; any thread.
#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"

namespace nixl::gds {

namespace {

Status failed(const char* what, const std::string& path, int error) {
    const auto code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::NOT_FOUND
                      : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::NOT_ALLOWED
                                                                            : ErrorCode::BACKEND;
    return {code, std::string(what) + " \"" + path + "\": " + errnoText(error), error};
}

std::map<std::string, std::string> attributesOf(const struct stat& info) {
    const char* kind = S_ISREG(info.st_mode)   ? "file"
                       : S_ISDIR(info.st_mode) ? "directory"
                       : S_ISBLK(info.st_mode) ? "block"
                                               : "other";
    const int64_t seconds = info.st_mtim.tv_sec;
    std::map<std::string, std::string> out;
    out.emplace_hint(out.end(), "mode", std::to_string(info.st_mode));
    out.emplace_hint(out.end(), "mtime", std::to_string(seconds));
    out.emplace_hint(out.end(), "mtime_ns",
                     std::to_string(seconds * 1'000'000'000 + info.st_mtim.tv_nsec));
    out.emplace_hint(out.end(), "size", std::to_string(info.st_size));
    out.emplace_hint(out.end(), "type", kind);
    return out;
}

struct CloseFolder {
    void operator()(DIR* folder) const { closedir(folder); }
};

// Entries of one folder by name; symbolic links are not followed. A folder that went meanwhile
// has none.
Status readFolder(const std::string& folder, std::vector<std::string>& names) {
    const std::unique_ptr<DIR, CloseFolder> open(opendir(folder.c_str()));
    if (open == nullptr) {
        return errno == ENOENT || errno == ENOTDIR ? Status() : failed("list", folder, errno);
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

// The metadata is a path, with or without a "rw:" in front; without one the device id is a
// descriptor.
Result<std::optional<std::map<std::string, std::string>>> queryFile(const MemoryRegion& region) {
    using Answer = std::optional<std::map<std::string, std::string>>;
    struct stat info {};
    if (region.metadata.empty()) {
        if (region.deviceId > INT32_MAX || fstat(static_cast<int>(region.deviceId), &info) < 0) {
            return Answer();
        }
        return Answer(attributesOf(info));
    }
    Result<std::optional<FileSpec>> spec = parseFileSpec(region.metadata);
    if (!spec.ok()) {
        return spec.status();
    }
    const std::optional<FileSpec>& parsed = spec.value();
    const std::string path = parsed ? parsed->path : std::string(region.metadata);
    if (stat(path.c_str(), &info) == 0) {
        return Answer(attributesOf(info));
    }
    if (errno == ENOENT || errno == ENOTDIR) {
        return Answer();
    }
    return Status::backend("query \"" + path + "\": " + errnoText(errno), errno);
}

Result<std::vector<StorageEntry>> listFiles(std::string_view prefix, size_t limit) {
    if (prefix.empty() || prefix.front() != '/') {
        return Status::invalidParam("list \"" + std::string(prefix) +
                                    "\": the prefix must be a path from the root on");
    }
    std::vector<StorageEntry> found;
    // Folders still to be read; only of the first one names may not match.
    std::vector<std::string> folders{std::string(prefix.substr(0, prefix.rfind('/') + 1))};
    while (!folders.empty() && found.size() < limit) {
        const std::string folder = std::move(folders.back());
        folders.pop_back();
        std::vector<std::string> names;
        NIXL_RETURN_IF_ERROR(readFolder(folder, names));
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

Status removeFile(std::string_view name) {
    Result<std::optional<FileSpec>> spec = parseFileSpec(name);
    if (!spec.ok()) {
        return spec.status();
    }
    const std::optional<FileSpec>& parsed = spec.value();
    const std::string path = parsed ? parsed->path : std::string(name);
    struct stat info {};
    if (lstat(path.c_str(), &info) < 0) {
        return failed("remove", path, errno);
    }
    if (!S_ISREG(info.st_mode)) {
        return Status::notAllowed("remove \"" + path + "\": not a regular file");
    }
    return unlink(path.c_str()) < 0 ? failed("remove", path, errno) : Status();
}

}  // namespace nixl::gds
