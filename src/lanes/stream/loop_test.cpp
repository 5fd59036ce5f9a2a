// A data connection's choice of congestion control.
#include "lanes/stream/loop.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/reactor.h"

namespace nixl::peer {
namespace {

class Counted final : public DataConnection {
  public:
    using DataConnection::DataConnection;
    using DataConnection::kBytesToKnow;
    using DataConnection::movedInAll;
    uint64_t serve() override { return 0; }
    void pollReady() override {}
    void end(const Status& /*why*/) override {}
};

// One end of a TCP connection over the loopback device; the other end is kept open.
class DataLoopTest : public testing::Test {
  protected:
    void SetUp() override {
        uint16_t port = 0;
        const auto listener = base::listenTcp(port);
        ASSERT_TRUE(listener.ok());
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        base::Fd near(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        ASSERT_EQ(connect(near.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
        pollfd waiting{listener.value().get(), POLLIN, 0};
        ASSERT_EQ(poll(&waiting, 1, 30'000), 1);
        far_ = base::Fd(accept4(listener.value().get(), nullptr, nullptr, SOCK_CLOEXEC));
        connection_ = std::make_unique<Counted>(base::makeSocketChannel(std::move(near)), loop_);
    }
    // As a connection is left whose handshake took long.
    bool useBbr() const {
        return setsockopt(connection_->fd(), IPPROTO_TCP, TCP_CONGESTION, "bbr", 3) == 0;
    }
    std::string used() const {
        char name[16] = "";
        socklen_t length = sizeof(name) - 1;
        EXPECT_EQ(getsockopt(connection_->fd(), IPPROTO_TCP, TCP_CONGESTION, name, &length), 0);
        return name;
    }

    base::Fd far_;
    std::unique_ptr<base::EpollReactor> reactor_ = std::move(base::EpollReactor::create()).value();
    base::PollSet pollSet_{*reactor_, std::chrono::microseconds(100)};
    DataLoop loop_{1, pollSet_};
    std::unique_ptr<Counted> connection_;
};

TEST_F(DataLoopTest, HowNearThePeerIsIsLookedAtAgainWhenBytesHaveMoved) {
    connection_->chooseCongestion("auto");
    if (!useBbr()) {
        GTEST_SKIP() << "this system has no BBR, or does not allow it";
    }
    connection_->movedInAll(Counted::kBytesToKnow - 1);
    EXPECT_EQ(used(), "bbr");
    connection_->movedInAll(Counted::kBytesToKnow);
    EXPECT_EQ(used(), "reno");
    ASSERT_TRUE(useBbr());
    connection_->movedInAll(Counted::kBytesToKnow + 1);  // once is enough
    EXPECT_EQ(used(), "bbr");
}

TEST_F(DataLoopTest, WhatWasAskedForStays) {
    connection_->chooseCongestion("system");
    if (!useBbr()) {
        GTEST_SKIP() << "this system has no BBR, or does not allow it";
    }
    connection_->movedInAll(2 * Counted::kBytesToKnow);
    EXPECT_EQ(used(), "bbr");
}

}  // namespace
}  // namespace nixl::peer
