// Finding the file behind memory and publishing it; see shared_memory.h.
#include "shared_memory.h"

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix/engine.h"

namespace nixl::hf3fs {

namespace {

constexpr const char* kShm = "/dev/shm/";

struct Mapping {
    uint64_t begin = 0;
    uint64_t end = 0;
    uint64_t offset = 0;
    bool shared = false;
    std::string path;
};

// The mapping that holds an address, by the system's list.
bool findMapping(uint64_t address, Mapping& found) {
    const auto close = [](FILE* file) { fclose(file); };
    const std::unique_ptr<FILE, decltype(close)> maps(fopen("/proc/self/maps", "re"), close);
    char line[4500];
    while (maps != nullptr && fgets(line, sizeof(line), maps.get()) != nullptr) {
        char flags[8] = {};
        int path_at = 0;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %*s %*s %n", &found.begin,
                   &found.end, flags, &found.offset, &path_at) < 4 ||
            address < found.begin || address >= found.end) {
            continue;
        }
        found.shared = flags[3] == 's';
        found.path = line + path_at;
        while (!found.path.empty() && found.path.back() == '\n') {
            found.path.pop_back();
        }
        return true;
    }
    return false;
}

// The form in which 3FS writes the 16 bytes of an id.
std::string hexOf(const uint8_t* id) {
    std::string text;
    char two[3];
    for (int i = 0; i < 16; ++i) {
        snprintf(two, sizeof(two), "%02x", id[i]);
        text += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(two);
    }
    return text;
}

}  // namespace

PublishedIov::~PublishedIov() {
    if (!link.empty()) {
        unlink(link.c_str());
    }
}

Result<std::shared_ptr<PublishedIov>> SharedMemory::find(uint64_t address, uint64_t size) {
    char place[64];
    snprintf(place, sizeof(place), "0x%" PRIx64 " + %" PRIu64, address, size);
    const auto refuse = [&place](const std::string& why) {
        return Status::notSupported("HF3FS: memory " + std::string(place) + " cannot be an iov: " +
                                    why + "; 3FS takes mappings of files below /dev/shm only");
    };
    Mapping mapping;
    if (!findMapping(address, mapping)) {
        return refuse("nothing is mapped there");
    }
    if (!mapping.shared || !mapping.path.starts_with(kShm)) {
        return refuse(!mapping.shared        ? std::string("it is private")
                      : mapping.path.empty() ? std::string("it is no file")
                                             : "it is of " + mapping.path);
    }
    if (size > mapping.end - address) {
        return refuse("it is more than one mapping (" + mapping.path + ")");
    }
    struct stat info {};
    if (stat(mapping.path.c_str(), &info) < 0) {
        return refuse(mapping.path + ": " + posix::errnoText(errno));
    }
    if (static_cast<uint64_t>(info.st_size) < mapping.offset + (address - mapping.begin) + size) {
        return refuse(mapping.path + " is shorter");
    }
    const std::lock_guard lock(mutex_);
    const uint64_t base = mapping.begin - mapping.offset;
    std::weak_ptr<PublishedIov>& known = known_[{mapping.path, base}];
    if (std::shared_ptr<PublishedIov> published = known.lock()) {
        return published;
    }
    Result<std::shared_ptr<PublishedIov>> made =
        publish(mapping.path, base, static_cast<uint64_t>(info.st_size));
    if (made.ok()) {
        known = made.value();
    }
    return made;
}

Result<std::shared_ptr<PublishedIov>> SharedMemory::publish(const std::string& path,
                                                            uint64_t base,
                                                            uint64_t bytes) {
    auto published = std::make_shared<PublishedIov>();
    uint8_t id[16];
    if (getrandom(id, sizeof(id), 0) != sizeof(id)) {
        return Status::backend("HF3FS: getrandom: " + posix::errnoText(errno), errno);
    }
    id[6] = static_cast<uint8_t>((id[6] & 0x0f) | 0x40);  // a random UUID
    id[8] = static_cast<uint8_t>((id[8] & 0x3f) | 0x80);
    const std::string link = mount_ + "/3fs-virt/iovs/" + hexOf(id);
    if (symlink(path.c_str(), link.c_str()) < 0) {
        const int error = errno;
        return Status::backend(
            "HF3FS: publishing " + path + " as " + link + ": " + posix::errnoText(error), error);
    }
    published->link = link;
    const int error = library_.iovWrap(&published->iov, reinterpret_cast<void*>(base), id,
                                       mount_.c_str(), bytes, 0, -1);
    if (error != 0) {
        return Status::backend("HF3FS: hf3fs_iovwrap of " + path + ": " + posix::errnoText(-error),
                               -error);
    }
    return published;
}

}  // namespace nixl::hf3fs
