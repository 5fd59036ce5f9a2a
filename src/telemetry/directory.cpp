// See directory.h.
#include "telemetry/directory.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/system_error.h"

namespace nixl::telemetry {
namespace {

Status failed(const std::string& what, int error) {
    return base::systemError("telemetry: cannot " + what, error);
}

}  // namespace

std::string defaultDirectory() {
    for (const char* const name : {"NIXL_TELEMETRY_DIR", "NIXL_TELEMETRY_MULTIPROC_DIR"}) {
        const char* const given = std::getenv(name);
        if (given != nullptr && *given != '\0') {
            return given;
        }
    }
    const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
    struct stat facts {};
    if (runtime != nullptr && *runtime == '/' && stat(runtime, &facts) == 0) {
        return std::string(runtime) + "/nixl";
    }
    return "/tmp/nixl-" + std::to_string(geteuid());
}

Status openDirectory(const std::string& path) {
    if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
        return failed("make the directory " + path, errno);
    }
    struct stat facts {};
    if (stat(path.c_str(), &facts) != 0) {
        return failed("use the directory " + path, errno);
    }
    if (!S_ISDIR(facts.st_mode)) {
        return failed("use the directory " + path, ENOTDIR);
    }
    const bool own = facts.st_uid == geteuid() || facts.st_uid == 0;
    const bool shared = (facts.st_mode & (S_IWGRP | S_IWOTH)) != 0;
    const bool sticky = (facts.st_mode & S_ISVTX) != 0;
    if (!own || (shared && !sticky)) {
        return Status::notAllowed(
            "telemetry: the directory " + path +
            (own ? " is writable for others (chmod go-w)" : " belongs to another user") +
            "; NIXL_TELEMETRY_DIR names another one");
    }
    return {};
}

Status replaceFile(const std::string& directory, const std::string& name, std::string_view text) {
    const std::string path = directory + "/" + name;
    const std::string fresh = directory + "/." + name + ".new";
    unlink(fresh.c_str());  // of a process that was killed
    const int file =
        open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) {
        return failed("write " + fresh, errno);
    }
    while (!text.empty()) {
        const ssize_t written = write(file, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            const int error = errno;
            close(file);
            unlink(fresh.c_str());
            return failed("write " + fresh, error);
        }
        text.remove_prefix(written > 0 ? static_cast<size_t>(written) : 0);
    }
    close(file);
    if (rename(fresh.c_str(), path.c_str()) != 0) {
        const int error = errno;
        unlink(fresh.c_str());
        return failed("write " + path, error);
    }
    return {};
}

}  // namespace nixl::telemetry
