// See format.h. One line: "nixl-hicache packed 1 secret HEX crc HEX", the checksum being that of
// what stands before it. It is missing in lines that were written before there was one.
#include "hicache/format.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "hicache/system.h"

namespace nixl::hicache {
namespace {

constexpr int kAttempts = 3;
constexpr std::string_view kStart = "nixl-hicache packed ";

enum class Kind : uint8_t { MISSING, GOOD, BLANK, DAMAGED };

struct Look {
    Kind kind = Kind::MISSING;
    HashSecret secret;
    size_t bytes = 0;
};

std::string lineOf(const HashSecret& secret) {
    char text[128];
    std::snprintf(text, sizeof(text), "nixl-hicache packed 1 secret %016llx%016llx",
                  static_cast<unsigned long long>(secret.low),
                  static_cast<unsigned long long>(secret.high));
    std::string line = text;
    std::snprintf(text, sizeof(text), " crc %08x\n", base::crc32c(line));
    return line + text;
}

bool parse(const std::string& text, HashSecret& secret) {
    unsigned long long low = 0;
    unsigned long long high = 0;
    int end = 0;
    if (std::sscanf(text.c_str(), "nixl-hicache packed 1 secret %16llx%16llx%n", &low, &high,
                    &end) != 2) {
        return false;
    }
    secret = {low, high};
    const std::string line = lineOf(secret);
    return text == line || text == line.substr(0, static_cast<size_t>(end)) + "\n";
}

Result<Look> look(const std::string& path) {
    auto fd = openFile(path, O_RDONLY);
    if (!fd.ok()) {
        return fd.status().systemErrno() == ENOENT ? Result<Look>(Look{}) : fd.status();
    }
    std::string text(256, '\0');
    auto got = readAll(fd.value().get(), path, text.data(), text.size(), 0);
    if (!got.ok()) {
        return got.status();
    }
    text.resize(got.value());
    Look out;
    out.bytes = text.size();
    int version = 0;
    if (parse(text, out.secret)) {
        out.kind = Kind::GOOD;
    } else if (text.starts_with(kStart) &&
               std::sscanf(text.c_str() + kStart.size(), "%d secret", &version) == 1 &&
               version > 1) {
        return Status::mismatch(path + ": a packed store of version " + std::to_string(version) +
                                "; this one reads version 1");
    } else {
        out.kind = text.find_first_not_of('\0') == std::string::npos ? Kind::BLANK : Kind::DAMAGED;
    }
    return out;
}

// On the disk before it has its name, so that no power cut leaves an empty one.
Status writeLine(const std::string& path, const HashSecret& secret, unsigned mode, bool replace) {
    const std::string line = lineOf(secret);
    const std::string temporary = path + "." + randomName();
    auto made = openFile(temporary, O_WRONLY | O_CREAT | O_EXCL, mode);
    if (!made.ok()) {
        return made.status();
    }
    Status status = writeAll(made.value().get(), temporary, line.data(), line.size(), 0);
    if (status.ok() && fsync(made.value().get()) != 0) {
        status = systemError("fsync", temporary, errno);
    }
    if (status.ok() && replace && rename(temporary.c_str(), path.c_str()) != 0) {
        status = systemError("repair", path, errno);
    } else if (status.ok() && !replace && link(temporary.c_str(), path.c_str()) != 0 &&
               errno != EEXIST) {
        status = systemError("make", path, errno);
    }
    unlink(temporary.c_str());  // after a rename there is none
    return status;
}

bool anyLog(const std::string& root) {
    DIR* listing = opendir((root + "/logs").c_str());
    bool any = false;
    while (listing != nullptr && !any) {
        const dirent* entry = readdir(listing);
        if (entry == nullptr) {
            break;
        }
        struct stat info {};
        const std::string path = root + "/logs/" + entry->d_name;
        any = stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
    }
    if (listing != nullptr) {
        closedir(listing);
    }
    return any;
}

// A blank one of a store that holds nothing goes, by one process at a time.
Status removeBlank(const std::string& root) {
    auto folder = openFile(root, O_RDONLY | O_DIRECTORY);
    if (!folder.ok()) {
        return folder.status();
    }
    while (flock(folder.value().get(), LOCK_EX) != 0) {
        if (errno != EINTR) {
            return systemError("lock", root, errno);
        }
    }
    const std::string path = root + "/format";
    const auto now = look(path);
    if (now.ok() && now.value().kind == Kind::BLANK && unlink(path.c_str()) != 0) {
        return systemError("remove", path, errno);
    }
    return now.status();
}

Status damaged(const std::string& root, size_t bytes) {
    return Status::mismatch(
        root + "/format: damaged (" + std::to_string(bytes) +
        " bytes, not the line that a packed store begins with), and format.copy "
        "beside it does not help; without it nothing that is stored can be "
        "found: put a copy back, or remove " +
        root + " to start anew");
}

}  // namespace

Result<HashSecret> loadSecret(const std::string& root, const FormatOptions& options) {
    const std::string path = root + "/format";
    HashSecret fresh = options.secret;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
        const auto here = look(path);
        if (!here.ok()) {
            return here.status();
        }
        const auto copy = look(path + ".copy");
        const bool copied = copy.ok() && copy.value().kind == Kind::GOOD;
        if (here.value().kind == Kind::GOOD) {
            if (!copied && !options.readOnly) {
                const Status status =
                    writeLine(path + ".copy", here.value().secret, options.fileMode, true);
                static_cast<void>(status);  // it is needed where the other is damaged
            }
            return here.value().secret;
        }
        if (copied) {
            if (!options.readOnly) {
                NIXL_RETURN_IF_ERROR(writeLine(path, copy.value().secret, options.fileMode, true));
            }
            return copy.value().secret;
        }
        const bool missing = here.value().kind == Kind::MISSING;
        if (options.readOnly && missing) {
            return systemError("open", path, ENOENT);
        }
        if (!missing) {
            if (here.value().kind != Kind::BLANK || options.readOnly || anyLog(root)) {
                return damaged(root, here.value().bytes);
            }
            NIXL_RETURN_IF_ERROR(removeBlank(root));
        }
        if (fresh.low == 0 && fresh.high == 0 &&
            getrandom(&fresh, sizeof(fresh), 0) != sizeof(fresh)) {
            return systemError("random numbers for", path, errno);
        }
        NIXL_RETURN_IF_ERROR(writeLine(path, fresh, options.fileMode, false));
    }
    return systemError("read", path, ENOENT);
}

}  // namespace nixl::hicache
