// Ending connections by their address: those alone, also while their numbers change.
#include "fabric_sockets.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nixl::fabric {
namespace {

// A listener on loopback and one connection to it.
struct Connected {
    Connected() {
        listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(address);
        EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
        EXPECT_EQ(listen(listener, 4), 0);
        EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
        name.assign(reinterpret_cast<const char*>(&address), size);
        near = dial();
        far = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    }
    ~Connected() {
        for (const int fd : {listener, near, far}) {
            close(fd);
        }
    }
    Connected(const Connected&) = delete;
    Connected& operator=(const Connected&) = delete;

    int dial() const {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(name.data()),
                          static_cast<socklen_t>(name.size())),
                  0);
        return fd;
    }

    int listener = -1;
    int near = -1;
    int far = -1;
    std::string name;
};

bool atEnd(int fd) {
    char byte = 0;
    return recv(fd, &byte, 1, MSG_DONTWAIT) == 0;
}

TEST(FabricSockets, EndsTheConnectionsOfAnAddressAndNoOthers) {
    const Connected one;
    const Connected other;
    const Connections ended = endConnections(one.name, Side::FAR);
    EXPECT_EQ(ended.size(), 1U);
    EXPECT_TRUE(atEnd(one.near));
    EXPECT_FALSE(atEnd(other.near));
    EXPECT_TRUE(anyOpen(ended));

    const Connections accepted = endConnections(other.name, Side::OWN);
    EXPECT_EQ(accepted.size(), 1U);
    EXPECT_TRUE(atEnd(other.far));
    const int next = other.dial();  // the listener goes on
    EXPECT_GE(next, 0);
    close(next);
}

TEST(FabricSockets, WhatIsClosedIsNotOpen) {
    Connections ended;
    {
        const Connected one;
        ended = endConnections(one.name, Side::FAR);
        EXPECT_TRUE(anyOpen(ended));
    }
    EXPECT_FALSE(anyOpen(ended));
    EXPECT_TRUE(endConnections(std::string(16, '\0'), Side::FAR).empty());
}

}  // namespace
}  // namespace nixl::fabric
