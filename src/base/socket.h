// Sockets: the channel every byte goes through, listening and connecting. A Channel is used by one
// owner at a time (its connection's lock).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "nixl/error.h"

#include "base/descriptor.h"

namespace nixl::base {

// One connection. Encryption, once there is any, is another implementation.
class Channel {
  public:
    virtual ~Channel() = default;
    // Bytes moved; 0 where nothing can move now; an error where the connection is at its end
    // (errno 0: closed in order).
    virtual Result<size_t> receive(iovec* vectors, size_t count) = 0;
    virtual Result<size_t> send(const iovec* vectors, size_t count) = 0;
    // As send; on a unix socket `descriptors` go along with the first byte (all or none of them).
    virtual Result<size_t> sendWith(const iovec* vectors,
                                    size_t count,
                                    std::span<const int> descriptors) = 0;
    // How many descriptors may wait here; a peer that sends more loses the connection. 0: those
    // that come are closed by the system.
    virtual void allowDescriptors(size_t limit) = 0;
    // The oldest `count` of those that have come, or none where fewer have.
    virtual std::vector<Fd> takeDescriptors(size_t count) = 0;
    virtual int fd() const = 0;
    // Ends both directions; whoever waits on it wakes up.
    virtual void shutdown() = 0;
};

// Of a unix socket: takes as many descriptors as the handshake's first frames may bring.
std::unique_ptr<Channel> makeSocketChannel(Fd socket);
inline constexpr size_t kEarlyDescriptors = 2;

// The random number of this boot; zeros where it cannot be read.
std::array<uint8_t, 16> bootId();
// At most so many addresses of this host's interfaces, loopback last, without link-local ones.
std::vector<std::string> hostAddresses(size_t most);

// One address to try.
struct Target {
    sockaddr_storage address{};
    socklen_t length = 0;
    bool local = false;  // a unix socket
    std::string text;    // for messages
};

Target unixTarget(const std::string& name, bool abstract);
// `bytes`: an address of 4 or 16 bytes.
Target tcpTarget(const std::string& bytes, uint16_t port);
bool isLoopback(std::string_view bytes);

Result<Fd> listenAbstract(const std::string& name);
Result<Fd> listenPath(const std::string& path);
// All addresses, port chosen by the system (given back).
Result<Fd> listenTcp(uint16_t& port);
// A connection in progress (or complete). NOT_FOUND where nobody listens there.
Result<Fd> startConnect(const Target& target);
// The outcome of a connection in progress, as an errno.
int connectError(int fd);
// Options of an established connection.
void tuneSocket(int fd);
// How an established TCP connection answers delay and loss. "system": as the system is set up. An
// algorithm's name: that one. "auto" (or empty): as "system", but Reno in place of BBR where the
// peer is near (a round trip below 1 ms): BBR spaces packets by timers that are late by more than
// such a round trip takes, and then believes the path to be as slow as they made it. Measured in
// docs/performance.md. Other sockets, and what the system refuses, stay as they are.
void chooseCongestion(int fd, const std::string& wanted);
// Whether `wanted` means something on this system; else an error that names what it has.
Status checkCongestion(const std::string& wanted);
// Bytes that were sent and that the other system has not taken yet.
size_t unsentBytes(int fd);
// The peer's process and user of a unix socket; pid 0 where it has none in this namespace.
struct SocketPeer {
    pid_t pid = 0;
    uid_t uid = UINT32_MAX;
    bool local = false;
};
SocketPeer socketPeer(int fd);
// A descriptor of the process behind a unix socket, also of one in another PID namespace (Linux
// 6.5); invalid where the system gives none.
Fd socketPidfd(int fd, pid_t pid);

}  // namespace nixl::base
