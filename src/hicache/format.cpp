// See format.h.
#include "hicache/format.h"

#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include "hicache/system.h"

namespace nixl::hicache {

Result<HashSecret> loadSecret(const std::string& root, HashSecret secret, bool read_only) {
    const std::string path = root + "/format";
    for (int attempt = 0; attempt < 2; ++attempt) {
        auto fd = openFile(path, O_RDONLY);
        if (fd.ok()) {
            char text[128] = {};
            auto got = readAll(fd.value().get(), path, text, sizeof(text) - 1, 0);
            if (!got.ok()) {
                return got.status();
            }
            unsigned long long low = 0;
            unsigned long long high = 0;
            if (std::sscanf(text, "nixl-hicache packed 1 secret %16llx%16llx", &low, &high) != 2) {
                return Status::mismatch(path + ": not a packed store of version 1");
            }
            return HashSecret{low, high};
        }
        if (read_only || fd.status().systemErrno() != ENOENT) {
            return fd.status();
        }
        if (secret.low == 0 && secret.high == 0 &&
            getrandom(&secret, sizeof(secret), 0) != sizeof(secret)) {
            return systemError("random numbers for", path, errno);
        }
        char text[128];
        const int size =
            std::snprintf(text, sizeof(text), "nixl-hicache packed 1 secret %016llx%016llx\n",
                          static_cast<unsigned long long>(secret.low),
                          static_cast<unsigned long long>(secret.high));
        const std::string temporary = path + "." + randomName();
        auto made = openFile(temporary, O_WRONLY | O_CREAT | O_EXCL);
        if (!made.ok()) {
            return made.status();
        }
        const Status written =
            writeAll(made.value().get(), temporary, text, static_cast<size_t>(size), 0);
        const int linked = written.ok() ? link(temporary.c_str(), path.c_str()) : 0;
        const int error = errno;
        unlink(temporary.c_str());
        NIXL_RETURN_IF_ERROR(written);
        if (linked != 0 && error != EEXIST) {
            return systemError("make", path, error);
        }
    }
    return systemError("read", path, ENOENT);
}

}  // namespace nixl::hicache
