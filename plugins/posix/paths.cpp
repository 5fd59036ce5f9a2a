// Reading metadata, and asking for files; see paths.h.
#include "paths.h"

#include <algorithm>
#include <cerrno>

#include <sys/stat.h>

#include "errno_text.h"

namespace nixl::posix {

Result<std::optional<FileSpec>> parseFileSpec(std::string_view metadata, const char* plugin) {
    const size_t colon = metadata.find(':');
    const std::string_view flags = metadata.substr(0, colon);
    if (colon == std::string_view::npos) {
        return std::optional<FileSpec>();
    }
    FileSpec spec;
    bool read_only = false;
    std::string_view unknown;
    for (size_t at = 0; at <= flags.size();) {
        const size_t comma = std::min(flags.find(',', at), flags.size());
        const std::string_view word = flags.substr(at, comma - at);
        at = comma + 1;
        if (word == "ro") {
            read_only = true;
        } else if (word == "rw") {
            spec.write = true;
        } else if (word == "direct") {
            spec.direct = true;
        } else if (word == "create") {
            spec.create = true;
        } else if (unknown.data() == nullptr) {
            unknown = word;
        }
    }
    const std::string text(metadata);
    if (!read_only && !spec.write) {
        return std::optional<FileSpec>();
    }
    const std::string_view first = flags.substr(0, flags.find(','));
    if (unknown.data() != nullptr) {
        if (first != "ro" && first != "rw") {
            return std::optional<FileSpec>();
        }
        return Status::invalidParam(std::string(plugin) + ": file \"" + text +
                                    "\": unknown flag \"" + std::string(unknown) +
                                    "\"; ro, rw, direct, create are known");
    }
    if (read_only && (spec.write || spec.create)) {
        return Status::invalidParam(std::string(plugin) + ": file \"" + text +
                                    "\": ro contradicts " + (spec.write ? "rw" : "create"));
    }
    spec.path = metadata.substr(colon + 1);
    if (spec.path.empty() || spec.path.find('\0') != std::string::npos) {
        return Status::invalidParam(std::string(plugin) + ": file \"" + text +
                                    "\": the path is empty or has a NUL");
    }
    return std::optional<FileSpec>(std::move(spec));
}

std::map<std::string, std::string> attributesOf(const struct stat& info) {
    const char* kind = S_ISREG(info.st_mode)   ? "file"
                       : S_ISDIR(info.st_mode) ? "directory"
                       : S_ISBLK(info.st_mode) ? "block"
                                               : "other";
    const int64_t seconds = info.st_mtim.tv_sec;
    std::map<std::string, std::string> out;  // thousands are asked at a time: nothing is copied
    out.emplace_hint(out.end(), "mode", std::to_string(info.st_mode));
    out.emplace_hint(out.end(), "mtime", std::to_string(seconds));
    out.emplace_hint(out.end(), "mtime_ns",
                     std::to_string(seconds * 1'000'000'000 + info.st_mtim.tv_nsec));
    out.emplace_hint(out.end(), "size", std::to_string(info.st_size));
    out.emplace_hint(out.end(), "type", kind);
    return out;
}

// The metadata is a path, with or without a "rw:" in front; without one the device id is a
// descriptor.
Result<std::optional<std::map<std::string, std::string>>> queryFile(const MemoryRegion& region,
                                                                    const char* plugin) {
    using Answer = std::optional<std::map<std::string, std::string>>;
    struct stat info {};
    if (region.metadata.empty()) {
        if (region.deviceId > INT32_MAX || fstat(static_cast<int>(region.deviceId), &info) < 0) {
            return Answer();
        }
        return Answer(attributesOf(info));
    }
    Result<std::optional<FileSpec>> spec = parseFileSpec(region.metadata, plugin);
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
    return Status::backend(std::string(plugin) + ": query \"" + path + "\": " + errnoText(errno),
                           errno);
}

}  // namespace nixl::posix
