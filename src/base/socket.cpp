// See socket.h.
#include "base/socket.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/sha256.h"
#include "base/system_error.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

namespace nixl::base {

namespace {

constexpr int kBacklog = 256;

class SocketChannel final : public Channel {
  public:
    SocketChannel(Fd socket, bool local)
        : socket_(std::move(socket)), allowed_(local ? kEarlyDescriptors : 0) {}

    Result<size_t> receive(iovec* vectors, size_t count) override {
        while (true) {
            const ssize_t got = allowed_ != 0
                                    ? receiveMessage(vectors, count)
                                    : readv(socket_.get(), vectors, static_cast<int>(count));
            if (got > 0) {
                return static_cast<size_t>(got);
            }
            if (got == 0) {
                return Status(ErrorCode::REMOTE_DISCONNECT, "the peer closed the connection");
            }
            if (errno == EAGAIN) {
                return size_t{0};
            }
            if (errno != EINTR) {
                return lost(errno);
            }
        }
    }
    Result<size_t> send(const iovec* vectors, size_t count) override {
        return sendWith(vectors, count, {});
    }
    Result<size_t> sendWith(const iovec* vectors,
                            size_t count,
                            std::span<const int> descriptors) override {
        msghdr message{};
        message.msg_iov = const_cast<iovec*>(vectors);
        message.msg_iovlen = count;
        std::string control;
        if (!descriptors.empty()) {
            control.resize(CMSG_SPACE(descriptors.size_bytes()));
            message.msg_control = control.data();
            message.msg_controllen = control.size();
            cmsghdr* const header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
            std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
        }
        while (true) {
            const ssize_t put = sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put >= 0) {
                return static_cast<size_t>(put);
            }
            if (errno == EAGAIN || errno == ENOBUFS) {
                return size_t{0};
            }
            if (errno != EINTR) {
                return lost(errno);
            }
        }
    }
    void allowDescriptors(size_t limit) override {
        allowed_ = limit;
        if (limit == 0) {
            came_.clear();
        }
    }
    std::vector<Fd> takeDescriptors(size_t count) override {
        std::vector<Fd> taken;
        if (count <= came_.size()) {
            const auto end = came_.begin() + static_cast<std::ptrdiff_t>(count);
            taken.assign(std::move_iterator(came_.begin()), std::move_iterator(end));
            came_.erase(came_.begin(), end);
        }
        return taken;
    }
    int fd() const override { return socket_.get(); }
    void shutdown() override { ::shutdown(socket_.get(), SHUT_RDWR); }

  private:
    static Status lost(int error) {
        return systemError("connection lost", error, ErrorCode::REMOTE_DISCONNECT);
    }

    // readv, keeping the descriptors that come along.
    ssize_t receiveMessage(iovec* vectors, size_t count) {
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostAtOnce)];
        msghdr message{};
        message.msg_iov = vectors;
        message.msg_iovlen = count;
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        const ssize_t got = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got < 0) {
            return got;
        }
        for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
            if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) {
                continue;
            }
            const size_t size = at->cmsg_len - CMSG_LEN(0);
            for (size_t i = 0; i < size / sizeof(int); ++i) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof(int));
                came_.emplace_back(fd);
            }
        }
        // No room in this process. Which frame those belong to that came is not known any more, so
        // that no frame gets any from here on; all frames can do without.
        incomplete_ = incomplete_ || (message.msg_flags & MSG_CTRUNC) != 0;
        if (came_.size() > allowed_) {
            came_.clear();
            errno = EMSGSIZE;  // more than anybody asked for
            return -1;
        }
        if (incomplete_) {
            came_.clear();
        }
        return got;
    }

    static constexpr size_t kMostAtOnce = 253;  // the system's own limit
    Fd socket_;
    size_t allowed_;
    bool incomplete_ = false;
    std::vector<Fd> came_;
};

Result<Fd> newSocket(int family) {
    Fd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) {
        return systemError("socket", errno);
    }
    return fd;
}

Result<Fd> bindAndListen(Fd fd, const Target& target) {
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&target.address), target.length) < 0 ||
        listen(fd.get(), kBacklog) < 0) {
        return systemError("cannot listen on " + target.text, errno);
    }
    return fd;
}

}  // namespace

Target unixTarget(const std::string& name, bool abstract) {
    Target target;
    target.local = true;
    auto* address = reinterpret_cast<sockaddr_un*>(&target.address);
    address->sun_family = AF_UNIX;
    const size_t lead = abstract ? 1 : 0;
    const size_t size = std::min(name.size(), sizeof(address->sun_path) - lead - 1);
    std::memcpy(address->sun_path + lead, name.data(), size);
    target.length =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + lead + size + (abstract ? 0 : 1));
    target.text = abstract ? "unix socket @" + name : "unix socket " + name;
    return target;
}

Target tcpTarget(const std::string& bytes, uint16_t port) {
    Target target;
    char text[INET6_ADDRSTRLEN] = "";
    if (bytes.size() == 4) {
        auto* address = reinterpret_cast<sockaddr_in*>(&target.address);
        address->sin_family = AF_INET;
        address->sin_port = htons(port);
        std::memcpy(&address->sin_addr, bytes.data(), 4);
        target.length = sizeof(*address);
        inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text));
        target.text = std::string(text) + ":" + std::to_string(port);
    } else {
        auto* address = reinterpret_cast<sockaddr_in6*>(&target.address);
        address->sin6_family = AF_INET6;
        address->sin6_port = htons(port);
        std::memcpy(&address->sin6_addr, bytes.data(), 16);
        target.length = sizeof(*address);
        inet_ntop(AF_INET6, &address->sin6_addr, text, sizeof(text));
        target.text = "[" + std::string(text) + "]:" + std::to_string(port);
    }
    return target;
}

bool isLoopback(std::string_view bytes) {
    static constexpr std::string_view kSix("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16);
    return bytes.size() == 4 ? bytes[0] == 127 : bytes == kSix;
}

std::unique_ptr<Channel> makeSocketChannel(Fd socket) {
    const bool local = socketPeer(socket.get()).local;
    return std::make_unique<SocketChannel>(std::move(socket), local);
}

std::array<uint8_t, 16> bootId() {
    std::array<uint8_t, 16> key{};
    const Fd fd(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    char text[64];
    const ssize_t size = fd ? read(fd.get(), text, sizeof(text)) : -1;
    if (size > 0) {
        const Digest digest = sha256(std::string_view(text, static_cast<size_t>(size)));
        std::copy_n(digest.begin(), key.size(), key.begin());
    }
    return key;
}

std::vector<std::string> hostAddresses(size_t most) {
    std::vector<std::string> addresses;
    std::vector<std::string> loopback;
    ifaddrs* all = nullptr;
    if (getifaddrs(&all) != 0) {
        return {};
    }
    for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
        if (at->ifa_addr == nullptr || (at->ifa_flags & IFF_UP) == 0) {
            continue;
        }
        std::string bytes;
        if (at->ifa_addr->sa_family == AF_INET) {
            const auto* in = reinterpret_cast<const sockaddr_in*>(at->ifa_addr);
            bytes.assign(reinterpret_cast<const char*>(&in->sin_addr), 4);
        } else if (at->ifa_addr->sa_family == AF_INET6) {
            const auto* in = reinterpret_cast<const sockaddr_in6*>(at->ifa_addr);
            if (IN6_IS_ADDR_LINKLOCAL(&in->sin6_addr)) {
                continue;  // means nothing without an interface of the other host
            }
            bytes.assign(reinterpret_cast<const char*>(&in->sin6_addr), 16);
        } else {
            continue;
        }
        (isLoopback(bytes) ? loopback : addresses).push_back(bytes);
    }
    freeifaddrs(all);
    addresses.resize(std::min(addresses.size(), most - 2));
    loopback.resize(std::min<size_t>(loopback.size(), 2));
    addresses.insert(addresses.end(), loopback.begin(), loopback.end());
    return addresses;
}

Result<Fd> listenAbstract(const std::string& name) {
    auto fd = newSocket(AF_UNIX);
    return fd.ok() ? bindAndListen(std::move(fd).value(), unixTarget(name, true))
                   : Result<Fd>(fd.status());
}

Result<Fd> listenPath(const std::string& path) {
    if (path.size() > sizeof(sockaddr_un::sun_path) - 1) {
        return Status::invalidParam("socket path \"" + path + "\" is longer than 107 bytes");
    }
    auto fd = newSocket(AF_UNIX);
    if (!fd.ok()) {
        return fd.status();
    }
    auto bound = bindAndListen(std::move(fd).value(), unixTarget(path, false));
    if (bound.ok()) {
        chmod(path.c_str(), 0700);
    }
    return bound;
}

Result<Fd> listenTcp(uint16_t& port) {
    // One socket for both families where the system has IPv6, else IPv4 alone.
    for (const int family : {AF_INET6, AF_INET}) {
        auto fd = newSocket(family);
        if (!fd.ok()) {
            continue;
        }
        const int off = 0;
        if (family == AF_INET6) {
            setsockopt(fd.value().get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
        }
        auto bound = bindAndListen(std::move(fd).value(),
                                   tcpTarget(std::string(family == AF_INET6 ? 16 : 4, '\0'), 0));
        if (!bound.ok()) {
            continue;
        }
        sockaddr_storage address{};
        socklen_t length = sizeof(address);
        if (getsockname(bound.value().get(), reinterpret_cast<sockaddr*>(&address), &length) == 0) {
            port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                            : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
            return bound;
        }
    }
    return systemError("cannot listen on TCP", errno);
}

Result<Fd> startConnect(const Target& target) {
    auto fd = newSocket(target.address.ss_family);
    if (!fd.ok()) {
        return fd.status();
    }
    if (connect(fd.value().get(), reinterpret_cast<const sockaddr*>(&target.address),
                target.length) < 0 &&
        errno != EINPROGRESS && errno != EINTR) {
        const int error = errno;
        return systemError("cannot connect to " + target.text, error, ErrorCode::REMOTE_DISCONNECT);
    }
    return fd;
}

int connectError(int fd) {
    int error = 0;
    socklen_t length = sizeof(error);
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? errno : error;
}

void tuneSocket(int fd) {
    // Fails on unix sockets, which need none of it.
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    // Where nothing is asked for nobody notices that the connection is gone, but the system.
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    for (const auto& [option, value] :
         {std::pair(TCP_KEEPIDLE, 30), std::pair(TCP_KEEPINTVL, 10), std::pair(TCP_KEEPCNT, 3)}) {
        setsockopt(fd, IPPROTO_TCP, option, &value, sizeof(value));
    }
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
        address.ss_family == AF_UNIX) {
        const int size = 1 << 20;  // the default holds less than one chunk
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
}

namespace {

constexpr uint32_t kNearMicroseconds = 1000;

// Empty: not a TCP socket.
std::string congestionOf(int fd) {
    char name[16] = "";  // TCP_CA_NAME_MAX
    socklen_t length = sizeof(name) - 1;
    return getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0 ? name : "";
}

int setCongestion(int fd, const std::string& name) {
    const auto length = static_cast<socklen_t>(name.size());
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(), length) == 0 ? 0 : errno;
}

// By the shortest round trip so far (Linux 4.6), else by the average: a busy machine answers late.
bool isNear(int fd) {
    tcp_info info{};
    socklen_t length = sizeof(info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) {
        return false;
    }
    const bool known = length >= offsetof(tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) &&
                       info.tcpi_min_rtt > 0 && info.tcpi_min_rtt != UINT32_MAX;
    const uint32_t rtt = known ? info.tcpi_min_rtt : info.tcpi_rtt;
    return rtt > 0 && rtt < kNearMicroseconds;
}

}  // namespace

void chooseCongestion(int fd, const std::string& wanted) {
    if (wanted == "system") {
        return;
    }
    if (!wanted.empty() && wanted != "auto") {
        static_cast<void>(setCongestion(fd, wanted));
    } else if (congestionOf(fd).starts_with("bbr") && isNear(fd)) {
        static_cast<void>(setCongestion(fd, "reno"));
    }
}

Status checkCongestion(const std::string& wanted) {
    if (wanted.empty() || wanted == "auto" || wanted == "system") {
        return {};
    }
    const Fd probe(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!probe) {
        const int error = errno;
        return Status::backend("socket: " + std::generic_category().message(error), error);
    }
    const int error = setCongestion(probe.get(), wanted);
    if (error == 0) {
        return {};
    }
    std::string usable;
    std::getline(std::ifstream("/proc/sys/net/ipv4/tcp_allowed_congestion_control"), usable);
    return Status::invalidParam("no TCP congestion control \"" + wanted +
                                "\": " + errnoText(error) + "; usable here: auto system " + usable);
}

size_t unsentBytes(int fd) {
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

SocketPeer socketPeer(int fd) {
    SocketPeer peer;
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) < 0 ||
        address.ss_family != AF_UNIX) {
        return peer;
    }
    peer.local = true;
    ucred credentials{};
    length = sizeof(credentials);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0) {
        peer.pid = credentials.pid;
        peer.uid = credentials.uid;
    }
    return peer;
}

Fd socketPidfd(int fd, pid_t pid) {
    int pidfd = -1;
    socklen_t length = sizeof(pidfd);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0 && pidfd >= 0) {
        fcntl(pidfd, F_SETFD, FD_CLOEXEC);
        return Fd(pidfd);
    }
    return pid > 0 ? Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) : Fd();
}

}  // namespace nixl::base
