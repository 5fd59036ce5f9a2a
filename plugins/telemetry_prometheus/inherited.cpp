// See inherited.h. Between fork and the child's first words only system calls are made.
#include "inherited.h"

#include <array>
#include <charconv>
#include <cstring>
#include <mutex>

#include <dirent.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nixl::prometheus_exporter {
namespace {

struct Noted {
    int port = 0;  // 0: free
    int family = AF_UNSPEC;
    std::array<char, sizeof(in6_addr)> address{};  // zeros: any
};

constinit std::mutex mutex;
constinit std::array<Noted, 64> noted{};
constinit std::once_flag watched;

// Port 0 for what has none.
Noted placeOf(const sockaddr* address) {
    Noted place;
    place.family = address->sa_family;
    if (address->sa_family == AF_INET) {
        const auto* const four = reinterpret_cast<const sockaddr_in*>(address);
        place.port = ntohs(four->sin_port);
        std::memcpy(place.address.data(), &four->sin_addr, sizeof four->sin_addr);
    } else if (address->sa_family == AF_INET6) {
        const auto* const six = reinterpret_cast<const sockaddr_in6*>(address);
        place.port = ntohs(six->sin6_port);
        std::memcpy(place.address.data(), &six->sin6_addr, sizeof six->sin6_addr);
    }
    return place;
}

// Of a socket that listens there, or that was accepted there.
bool isOurs(int fd) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    int type = 0;
    socklen_t type_size = sizeof type;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) != 0 || type != SOCK_STREAM) {
        return false;
    }
    const Noted place = placeOf(reinterpret_cast<const sockaddr*>(&address));
    for (const Noted& one : noted) {
        if (place.port != 0 && one.port == place.port &&
            (one.address == Noted().address ||
             (one.family == place.family && one.address == place.address))) {
            return true;
        }
    }
    return false;
}

void closeInherited() {
    const int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return;
    }
    alignas(dirent64) std::array<char, 4096> entries{};
    for (;;) {
        const long got = syscall(SYS_getdents64, folder, entries.data(), entries.size());
        if (got <= 0) {
            break;
        }
        for (long at = 0; at < got;) {
            const auto* const entry = reinterpret_cast<const dirent64*>(entries.data() + at);
            const char* const name = entry->d_name;
            int fd = -1;
            if (std::from_chars(name, name + std::strlen(name), fd).ec == std::errc() &&
                fd != folder && isOurs(fd)) {
                close(fd);
            }
            at += entry->d_reclen;
        }
    }
    close(folder);
}

void beforeFork() {
    mutex.lock();
}

void afterFork() {
    mutex.unlock();
}

void inChild() {
    bool any = false;
    for (const Noted& one : noted) {
        any = any || one.port != 0;
    }
    if (any) {
        closeInherited();
        noted.fill({});
    }
    mutex.unlock();
}

// Any address where `host` is not numeric.
Noted placeOf(std::string host) {
    if (host.size() > 2 && host.front() == '[') {
        host = host.substr(1, host.size() - 2);
    }
    addrinfo hints{};
    hints.ai_flags = AI_NUMERICHOST;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) {
        return {};
    }
    const Noted place = placeOf(found->ai_addr);
    freeaddrinfo(found);
    return place;
}

}  // namespace

int listenNoted(const std::string& host, const std::function<int()>& listen) {
    std::call_once(watched, [] { pthread_atfork(beforeFork, afterFork, inChild); });
    Noted place = placeOf(host);
    const std::lock_guard lock(mutex);
    place.port = listen();
    for (Noted& one : noted) {
        if (place.port != 0 && one.port == 0) {
            one = place;
            break;
        }
    }
    return place.port;
}

void forgetNoted(int port) {
    const std::lock_guard lock(mutex);
    for (Noted& one : noted) {
        if (port != 0 && one.port == port) {
            one = {};
            break;
        }
    }
}

}  // namespace nixl::prometheus_exporter
