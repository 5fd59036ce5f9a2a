// See fabric_sockets.h.
#include "fabric_sockets.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::fabric {
namespace {

// Calls `each` with every descriptor of a socket.
template <typename Each>
void forSockets(const Each& each) {
    std::error_code error;
    std::filesystem::directory_iterator entry("/proc/self/fd", error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
        const int fd = std::atoi(entry->path().filename().c_str());
        struct stat info {};
        if (fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode)) {
            each(fd, static_cast<uint64_t>(info.st_ino));
        }
    }
}

bool sameAddress(const sockaddr_storage& one, const sockaddr_storage& other) {
    if (one.ss_family != other.ss_family) {
        return false;
    }
    if (one.ss_family == AF_INET) {
        const auto& first = reinterpret_cast<const sockaddr_in&>(one);
        const auto& second = reinterpret_cast<const sockaddr_in&>(other);
        return first.sin_port == second.sin_port && first.sin_addr.s_addr == second.sin_addr.s_addr;
    }
    const auto& first = reinterpret_cast<const sockaddr_in6&>(one);
    const auto& second = reinterpret_cast<const sockaddr_in6&>(other);
    return one.ss_family == AF_INET6 && first.sin6_port == second.sin6_port &&
           std::memcmp(&first.sin6_addr, &second.sin6_addr, sizeof(in6_addr)) == 0;
}

// Whether it is a connection of that address; not a listener.
bool matches(int fd, const sockaddr_storage& wanted, Side side) {
    sockaddr_storage own{};
    sockaddr_storage far{};
    socklen_t own_size = sizeof(own);
    socklen_t far_size = sizeof(far);
    return getpeername(fd, reinterpret_cast<sockaddr*>(&far), &far_size) == 0 &&
           getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_size) == 0 &&
           sameAddress(side == Side::OWN ? own : far, wanted);
}

}  // namespace

Connections endConnections(const std::string& address, Side side) {
    sockaddr_storage wanted{};
    std::memcpy(&wanted, address.data(), std::min(address.size(), sizeof(wanted)));
    Connections ended;
    forSockets([&](int fd, uint64_t /*inode*/) {
        if (!matches(fd, wanted, side)) {
            return;
        }
        // Another thread may close the number meanwhile, and have it again: look at a duplicate.
        const int held = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        struct stat info {};
        if (held >= 0 && matches(held, wanted, side) && fstat(held, &info) == 0 &&
            shutdown(held, SHUT_RDWR) == 0) {
            ended.push_back(info.st_ino);
        }
        if (held >= 0) {
            close(held);
        }
    });
    return ended;
}

bool anyOpen(const Connections& connections) {
    bool open = false;
    forSockets([&](int /*fd*/, uint64_t inode) {
        open =
            open || std::find(connections.begin(), connections.end(), inode) != connections.end();
    });
    return open;
}

}  // namespace nixl::fabric
