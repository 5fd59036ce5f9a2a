// Sockets where the system has no room, and what is asked of it for silent connections.
#include "base/socket.h"

#include <string>

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nixl::base {
namespace {

// Leaves room for so many descriptors more; all that was allowed at the end of the scope.
class FewDescriptors {
  public:
    explicit FewDescriptors(rlim_t room) {
        getrlimit(RLIMIT_NOFILE, &before_);
        const Fd lowest(dup(0));
        const rlimit few{static_cast<rlim_t>(lowest.get()) + room, before_.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
    }
    ~FewDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }
    FewDescriptors(const FewDescriptors&) = delete;
    FewDescriptors& operator=(const FewDescriptors&) = delete;

  private:
    rlimit before_{};
};

std::string take(Channel& channel) {
    char buffer[64];
    iovec vector{buffer, sizeof(buffer)};
    const auto got = channel.receive(&vector, 1);
    EXPECT_TRUE(got.ok()) << got.status().message();
    return {buffer, got.ok() ? got.value() : 0};
}

void send(Channel& channel, std::string text, std::span<const int> descriptors) {
    const iovec vector{text.data(), text.size()};
    ASSERT_TRUE(channel.sendWith(&vector, 1, descriptors).ok());
}

// The bytes come, the descriptors do not, nor do later ones: whose they are is not known.
TEST(Socket, DescriptorsThatFindNoRoomAreLeftOut) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    const auto near = makeSocketChannel(Fd(pair[0]));
    const auto far = makeSocketChannel(Fd(pair[1]));
    far->allowDescriptors(4);
    const int descriptors[] = {0, 1};
    send(*near, "good", descriptors);
    EXPECT_EQ(take(*far), "good");
    EXPECT_EQ(far->takeDescriptors(2).size(), 2U);
    for (const rlim_t room : {0, 1}) {
        const FewDescriptors few(room);
        send(*near, "full", descriptors);
        EXPECT_EQ(take(*far), "full");
        EXPECT_TRUE(far->takeDescriptors(1).empty());
    }
    send(*near, "room", descriptors);
    EXPECT_EQ(take(*far), "room");
    EXPECT_TRUE(far->takeDescriptors(1).empty());
}

TEST(Socket, SilentConnectionsAreKeptAlive) {
    const Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_TRUE(fd);
    tuneSocket(fd.get());
    int on = 0;
    socklen_t length = sizeof(on);
    ASSERT_EQ(getsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, &length), 0);
    EXPECT_EQ(on, 1);
}

// Both ends of a TCP connection over the loopback device.
struct Connected {
    Connected() {
        uint16_t port = 0;
        const auto listener = listenTcp(port);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        near = Fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        EXPECT_EQ(connect(near.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
        pollfd waiting{listener.value().get(), POLLIN, 0};
        EXPECT_EQ(poll(&waiting, 1, 30'000), 1);
        far = Fd(accept4(listener.value().get(), nullptr, nullptr, SOCK_CLOEXEC));
    }
    Fd near;
    Fd far;
};

std::string congestionOf(const Fd& fd) {
    char name[16] = "";
    socklen_t length = sizeof(name) - 1;
    EXPECT_EQ(getsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, name, &length), 0);
    return name;
}

TEST(Socket, NearPeersAreNotServedByBbr) {
    const Connected connected;
    for (const Fd* end : {&connected.near, &connected.far}) {
        if (setsockopt(end->get(), IPPROTO_TCP, TCP_CONGESTION, "bbr", 3) != 0) {
            GTEST_SKIP() << "this system has no BBR, or does not allow it";
        }
        chooseCongestion(end->get(), "system");
        EXPECT_EQ(congestionOf(*end), "bbr");
        chooseCongestion(end->get(), "");
        EXPECT_EQ(congestionOf(*end), "reno");
    }
}

TEST(Socket, CongestionControlIsTheOneAskedFor) {
    const Connected connected;
    ASSERT_EQ(setsockopt(connected.near.get(), IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
    chooseCongestion(connected.near.get(), "auto");
    EXPECT_EQ(congestionOf(connected.near), "reno");
    const std::string before = congestionOf(connected.far);
    chooseCongestion(connected.far.get(), "none such");
    EXPECT_EQ(congestionOf(connected.far), before);
    chooseCongestion(connected.far.get(), "reno");
    EXPECT_EQ(congestionOf(connected.far), "reno");
    const Fd unix_socket(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    chooseCongestion(unix_socket.get(), "auto");  // nothing happens
}

TEST(Socket, UnknownCongestionControlIsNamedBesideTheKnown) {
    for (const char* const name : {"", "auto", "system", "reno"}) {
        EXPECT_TRUE(checkCongestion(name).ok()) << name;
    }
    const Status status = checkCongestion("renoo");
    EXPECT_EQ(status.code(), ErrorCode::INVALID_PARAM);
    EXPECT_NE(status.message().find("\"renoo\""), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("auto system reno"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace nixl::base
