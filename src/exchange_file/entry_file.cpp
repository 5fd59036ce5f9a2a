// See entry_file.h. A file is "NIXLFS1\n", flags (u8; 1: owned), revision (u64), key and value
// (each a varint length and the bytes), CRC32C of everything before it (u32).
#include "exchange_file/entry_file.h"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/sha256.h"

namespace nixl::exchange_file {

namespace {

using exchange::StoreEntry;

constexpr std::string_view kMagic = "NIXLFS1\n";
constexpr std::string_view kSuffix = ".nixl";
constexpr size_t kLongestName = 200;
constexpr off_t kLargest = 256 << 20;

Status failed(const std::string& what, const std::string& path) {
    const int error = errno;
    return Status::backend(what + " " + path + ": " + std::generic_category().message(error),
                           error);
}

template <typename Call>
auto again(const Call& call) {
    decltype(call()) result;
    do {
        result = call();
    } while (result < 0 && errno == EINTR);
    return result;
}

Result<std::string> readAll(int fd, const std::string& path) {
    struct stat info {};
    if (fstat(fd, &info) != 0) {
        return failed("cannot look at", path);
    }
    if (!S_ISREG(info.st_mode) || info.st_size > kLargest) {
        return Status::invalidParam(path + " is no file of a metadata store");
    }
    std::string bytes(static_cast<size_t>(info.st_size), '\0');
    size_t have = 0;
    while (have < bytes.size()) {
        const ssize_t got =
            again([&] { return read(fd, bytes.data() + have, bytes.size() - have); });
        if (got < 0) {
            return failed("cannot read", path);
        }
        if (got == 0) {
            break;
        }
        have += static_cast<size_t>(got);
    }
    bytes.resize(have);
    return bytes;
}

Status writeAll(int fd, const std::string& bytes, const std::string& path) {
    size_t put = 0;
    while (put < bytes.size()) {
        const ssize_t now =
            again([&] { return write(fd, bytes.data() + put, bytes.size() - put); });
        if (now < 0) {
            return failed("cannot write", path);
        }
        put += static_cast<size_t>(now);
    }
    return fsync(fd) == 0 ? Status() : failed("cannot write", path);
}

// The owner has gone: so does the file, unless another has taken its place.
void removeOrphan(const std::string& directory, const std::string& path, int fd) {
    const auto lock = lockDirectory(directory);
    struct stat mine {};
    struct stat now {};
    if (lock.ok() && fstat(fd, &mine) == 0 && stat(path.c_str(), &now) == 0 &&
        mine.st_ino == now.st_ino && mine.st_dev == now.st_dev) {
        unlink(path.c_str());
    }
}

}  // namespace

std::string fileName(const std::string& key) {
    std::string name;
    for (const char letter : key) {
        const auto byte = static_cast<uint8_t>(letter);
        const bool plain = (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
                           (byte >= 'a' && byte <= 'z') || byte == '-' || byte == '_' ||
                           (byte == '.' && !name.empty());
        if (plain) {
            name += letter;
        } else {
            constexpr char kDigits[] = "0123456789ABCDEF";
            name += '%';
            name += kDigits[byte >> 4];
            name += kDigits[byte & 15];
        }
    }
    if (name.size() > kLongestName || name.empty()) {
        name = "%";
        for (const uint8_t byte : base::sha256(key)) {
            constexpr char kDigits[] = "0123456789abcdef";
            name += kDigits[byte >> 4];
            name += kDigits[byte & 15];
        }
    }
    return name + std::string(kSuffix);
}

bool isEntryName(std::string_view name) {
    return name.size() > kSuffix.size() && name.front() != '.' && name.ends_with(kSuffix);
}

std::string encodeEntry(const FileEntry& file) {
    base::ByteWriter out;
    out.raw(kMagic);
    out.fixed<uint8_t>(file.owned ? 1 : 0);
    out.fixed(file.entry.revision);
    out.text(file.entry.key);
    out.text(file.entry.value);
    out.fixed(base::crc32c(out.bytes()));
    return out.take();
}

Result<FileEntry> decodeEntry(const std::string& bytes, const std::string& path) {
    if (bytes.size() < kMagic.size() + 4 || !bytes.starts_with(kMagic)) {
        return Status::invalidParam(path + " is no file of a metadata store");
    }
    const std::string_view body = std::string_view(bytes).substr(0, bytes.size() - 4);
    base::ByteReader tail(std::string_view(bytes).substr(bytes.size() - 4));
    if (tail.fixed<uint32_t>() != base::crc32c(body)) {
        return Status::invalidParam(path + " is damaged: its checksum differs");
    }
    base::ByteReader in(body);
    in.raw(kMagic.size());
    FileEntry file;
    file.owned = in.fixed<uint8_t>() != 0;
    file.entry.revision = in.fixed<uint64_t>();
    file.entry.key = std::string(in.text());
    file.entry.value = std::string(in.text());
    if (!in.ok() || !in.atEnd()) {
        return Status::invalidParam(path + " is damaged");
    }
    return file;
}

Result<base::Fd> lockDirectory(const std::string& directory) {
    const std::string path = directory + "/.lock";
    base::Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || again([&] { return flock(fd.get(), LOCK_EX); }) != 0) {
        return failed("cannot lock", path);
    }
    return fd;
}

Result<std::optional<FileEntry>> readEntry(const std::string& directory, const std::string& name) {
    using Found = std::optional<FileEntry>;
    const std::string path = directory + "/" + name;
    const base::Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd) {
        return errno == ENOENT ? Result<Found>(Found())
                               : Result<Found>(failed("cannot open", path));
    }
    auto bytes = readAll(fd.get(), path);
    if (!bytes.ok()) {
        return bytes.status();
    }
    auto file = decodeEntry(bytes.value(), path);
    if (!file.ok()) {
        return file.status();
    }
    // The owner holds the lock for as long as it lives.
    if (file.value().owned && flock(fd.get(), LOCK_SH | LOCK_NB) == 0) {
        removeOrphan(directory, path, fd.get());
        return Found();
    }
    return Found(std::move(file).value());
}

Result<base::Fd> writeEntry(const std::string& directory, const FileEntry& file) {
    const std::string path = directory + "/" + fileName(file.entry.key);
    std::string beside = directory + "/.new-XXXXXX";
    base::Fd fd(mkostemp(beside.data(), O_CLOEXEC));
    if (!fd) {
        return failed("cannot make a file in", directory);
    }
    Status status = writeAll(fd.get(), encodeEntry(file), beside);
    if (status.ok() && file.owned && flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        status = failed("cannot lock", beside);
    }
    if (status.ok()) {
        const auto lock = lockDirectory(directory);
        if (!lock.ok()) {
            status = lock.status();
        } else if (rename(beside.c_str(), path.c_str()) != 0) {
            status = failed("cannot put in place", path);
        }
    }
    if (!status.ok()) {
        unlink(beside.c_str());
        return status;
    }
    const base::Fd folder(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder) {
        fsync(folder.get());
    }
    return fd;
}

Status removeEntry(const std::string& directory, const std::string& name) {
    const auto lock = lockDirectory(directory);
    if (!lock.ok()) {
        return lock.status();
    }
    const std::string path = directory + "/" + name;
    return unlink(path.c_str()) == 0 || errno == ENOENT ? Status() : failed("cannot remove", path);
}

}  // namespace nixl::exchange_file
