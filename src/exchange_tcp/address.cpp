// See address.h.
#include "exchange_tcp/address.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

namespace nixl::exchange_tcp {

namespace {

constexpr int kBacklog = 4096;

struct Found {
    std::vector<base::Target> targets;
    int error = 0;     // of getaddrinfo
    int sysError = 0;  // errno, where that is EAI_SYSTEM
};

std::string withoutBrackets(const std::string& host) {
    return host.size() > 2 && host.front() == '[' && host.back() == ']'
               ? host.substr(1, host.size() - 2)
               : host;
}

std::string textOf(const sockaddr* address, socklen_t length) {
    char host[NI_MAXHOST] = "";
    char port[NI_MAXSERV] = "";
    if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return "an address";
    }
    return address->sa_family == AF_INET6 ? "[" + std::string(host) + "]:" + port
                                          : std::string(host) + ":" + port;
}

Found ask(const std::string& host, uint16_t port, int flags) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    addrinfo* all = nullptr;
    Found found;
    found.error = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(),
                              &hints, &all);
    found.sysError = errno;
    if (found.error != 0) {
        return found;
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> keep(all, freeaddrinfo);
    for (const addrinfo* at = all; at != nullptr; at = at->ai_next) {
        if (at->ai_family != AF_INET && at->ai_family != AF_INET6) {
            continue;
        }
        base::Target target;
        std::memcpy(&target.address, at->ai_addr, at->ai_addrlen);
        target.length = at->ai_addrlen;
        target.text = textOf(at->ai_addr, at->ai_addrlen);
        found.targets.push_back(std::move(target));
    }
    return found;
}

Status notResolved(const std::string& host, const Found& found) {
    if (found.error == EAI_AGAIN) {
        return Status::backend("host \"" + host + "\": the name server does not answer now",
                               EAGAIN);
    }
    const std::string why = found.error == EAI_SYSTEM
                                ? std::generic_category().message(found.sysError)
                                : std::string(gai_strerror(found.error));
    return Status::notFound("host \"" + host + "\" has no address: " + why);
}

bool isLoopback(const sockaddr_storage& address) {
    if (address.ss_family == AF_INET) {
        const auto& four = reinterpret_cast<const sockaddr_in&>(address);
        return (ntohl(four.sin_addr.s_addr) >> 24) == 127;
    }
    return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

bool isEverywhere(const sockaddr_storage& address) {
    if (address.ss_family == AF_INET) {
        return reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr == INADDR_ANY;
    }
    return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

in_port_t& portOf(sockaddr_storage& address) {
    return address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                        : reinterpret_cast<sockaddr_in6&>(address).sin6_port;
}

// `both`: an IPv6 socket takes IPv4 too.
Result<base::Fd> listenOn(base::Target& target, bool both) {
    base::Fd fd(socket(target.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    const int only = both ? 0 : 1;
    const bool six = target.address.ss_family == AF_INET6;
    // Connections of an agent before this one may still be closing.
    if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        (six && setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)) != 0) ||
        bind(fd.get(), reinterpret_cast<sockaddr*>(&target.address), target.length) != 0 ||
        listen(fd.get(), kBacklog) != 0) {
        const int error = errno;
        return Status::backend(
            "cannot listen on " + target.text + ": " + std::generic_category().message(error) +
                (error == EADDRINUSE ? "; listen_port=0 lets the system choose a free port" : ""),
            error);
    }
    socklen_t length = sizeof(target.address);
    if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&target.address), &length) != 0) {
        return Status::backend("getsockname", errno);
    }
    return fd;
}

Result<Listening> listenEverywhere(uint16_t port) {
    Status last;
    // One socket for both families where the system has IPv6, else IPv4 alone.
    for (const char* const host : {"::", "0.0.0.0"}) {
        auto targets = numericTargets(host, port);
        if (!targets || targets->empty()) {
            continue;
        }
        auto fd = listenOn(targets->front(), true);
        if (fd.ok()) {
            Listening listening;
            listening.port = ntohs(portOf(targets->front().address));
            listening.everywhere = true;
            listening.sockets.push_back(std::move(fd).value());
            return listening;
        }
        last = fd.status();
        if (last.systemErrno() == EADDRINUSE || last.systemErrno() == EACCES) {
            break;
        }
    }
    return last;
}

}  // namespace

std::string addressText(const std::string& host, uint16_t port) {
    const std::string bare = withoutBrackets(host);
    return (bare.find(':') == std::string::npos ? bare : "[" + bare + "]") + ":" +
           std::to_string(port);
}

std::optional<std::vector<base::Target>> numericTargets(const std::string& host, uint16_t port) {
    Found found = ask(withoutBrackets(host), port, AI_NUMERICHOST);
    if (found.error != 0) {
        return std::nullopt;
    }
    return std::move(found.targets);
}

Result<std::vector<base::Target>> resolve(const std::string& host, uint16_t port) {
    Found found = ask(withoutBrackets(host), port, 0);
    if (found.error != 0 || found.targets.empty()) {
        return notResolved(host, found);
    }
    return std::move(found.targets);
}

Result<Listening> listenAt(const std::string& host, uint16_t port) {
    if (host.empty()) {
        return listenEverywhere(port);
    }
    auto targets = resolve(host, port);
    if (!targets.ok()) {
        return Status(targets.status().code(), "listen_host: " + targets.status().message(),
                      targets.status().systemErrno());
    }
    Listening listening;
    listening.port = port;
    listening.loopback = true;
    Status last;
    for (base::Target& target : targets.value()) {
        if (listening.port != 0) {
            portOf(target.address) = htons(listening.port);
        }
        auto fd = listenOn(target, false);
        if (!fd.ok()) {
            last = fd.status();
            if (last.systemErrno() == EAFNOSUPPORT || last.systemErrno() == EADDRNOTAVAIL) {
                continue;  // such as ::1 where IPv6 is off
            }
            return last;
        }
        listening.port = ntohs(portOf(target.address));
        listening.everywhere = listening.everywhere || isEverywhere(target.address);
        listening.loopback = listening.loopback && isLoopback(target.address);
        listening.sockets.push_back(std::move(fd).value());
    }
    if (listening.sockets.empty()) {
        return last;
    }
    return listening;
}

}  // namespace nixl::exchange_tcp
