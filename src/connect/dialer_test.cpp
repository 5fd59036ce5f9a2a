// A dialer against endpoints that refuse it in unkind ways.
#include "connect/dialer.h"

#include <cerrno>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/reactor.h"
#include "connect/endpoints.h"
#include "session/handshake.h"
#include "session/wire.h"

namespace nixl::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Says no to whoever comes before it has heard a word of it, and hangs up.
void refuse(int listener) {
    pollfd coming{listener, POLLIN, 0};
    ASSERT_EQ(poll(&coming, 1, 10'000), 1);
    const base::Fd socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(socket);
    base::ByteWriter out;
    const size_t begin = beginFrame(out, FrameType::REJECT);
    Reject{RejectCode::AUTHENTICATION, "go away"}.encode(out);
    endFrame(out, begin);
    ASSERT_EQ(::send(socket.get(), out.bytes().data(), out.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(out.size()));
}

// A endpoint on this host and one over TCP behind it, and who dials them.
class DialerTest : public testing::Test {
  protected:
    void SetUp() override {
        Endpoints endpoints;
        endpoints.bootId = base::bootId();
        endpoints.abstract = "nixl-dialer-test-" + std::to_string(getpid());
        auto listener = base::listenAbstract(endpoints.abstract);
        ASSERT_TRUE(listener.ok()) << listener.status().message();
        first_ = std::move(listener).value();
        auto next = base::listenTcp(endpoints.port);
        ASSERT_TRUE(next.ok()) << next.status().message();
        next_ = std::move(next).value();
        endpoints.addresses = {std::string("\x7f\0\0\1", 4)};
        const auto targets = targetsOf(endpoints, base::bootId());
        ASSERT_EQ(targets.size(), 2U);
        ASSERT_TRUE(targets.front().local);
        dialer_ = make(targets, seconds(20));
        targets_ = targets;
    }
    std::shared_ptr<Dialer> make(const std::vector<base::Target>& targets, milliseconds patience) {
        const Identity self{.name = "alice", .incarnation = {1}};
        const Identity peer{.name = "bob", .incarnation = {2}};
        const HandshakeSelf handshake{.self = self, .authKey = {}};
        return std::make_shared<Dialer>(
            *reactor_, targets,
            Connector(handshake, peer, ConnectionKind::CONTROL, "grant", GrantId{}, std::nullopt),
            patience);
    }
    // Reactor thread.
    void dial() {
        dialer_->start([this](const ConnectResult&) { ended_.set_value({}); },
                       [this](ConnectFailure why) { ended_.set_value(std::move(why)); });
    }
    void expectRefusedByTheFirst() {
        const ConnectFailure why = ended_.get_future().get();
        EXPECT_EQ(why.code, RejectCode::AUTHENTICATION) << why.status.message();
        EXPECT_EQ(why.status.code(), ErrorCode::NOT_ALLOWED);
        EXPECT_NE(why.status.message().find("go away"), std::string::npos) << why.status.message();
        const base::Fd nobody(accept4(next_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        EXPECT_FALSE(nobody) << "it went on to the next endpoint";
    }

    std::vector<base::Target> targets_;
    base::Fd first_;
    base::Fd next_;
    std::promise<ConnectFailure> ended_;
    std::shared_ptr<Dialer> dialer_;
    std::unique_ptr<base::EpollReactor> reactor_ = std::move(base::EpollReactor::create()).value();
};

// The word of the first endpoint counts, although what is sent there no longer arrives: the next
// endpoint, where somebody listens too, is not tried.
TEST_F(DialerTest, RefusalBeforeTheFirstByteCounts) {
    // In one call on the reactor's thread: connected and refused before anything is sent.
    reactor_->startTimer(Reactor::Clock::now(), [&] {
        dial();
        refuse(first_.get());
    });
    expectRefusedByTheFirst();
}

// What is told is why the first was of no use, not that nobody listens at the last.
TEST_F(DialerTest, TellsOfTheEndpointThatDidNotAnswer) {
    dialer_ = make(targets_, milliseconds(200));
    next_.reset();
    reactor_->startTimer(Reactor::Clock::now(), [&] { dial(); });
    const ConnectFailure why = ended_.get_future().get();
    EXPECT_EQ(why.status.message(), "no answer from " + targets_.front().text);
    EXPECT_FALSE(why.refused);
}

// Many connect at once: the queue of the first endpoint is full for a moment.
TEST_F(DialerTest, WaitsForRoomInTheQueue) {
    ASSERT_EQ(listen(first_.get(), 1), 0);
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    ASSERT_EQ(getsockname(first_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    std::vector<base::Fd> queued;
    while (true) {
        queued.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (connect(queued.back().get(), reinterpret_cast<sockaddr*>(&address), length) != 0) {
            ASSERT_EQ(errno, EAGAIN);
            queued.pop_back();
            break;
        }
        ASSERT_LT(queued.size(), 100U);
    }
    reactor_->startTimer(Reactor::Clock::now(), [&] { dial(); });
    // sleeps: the dialer finds no room, which nobody sees from outside
    std::this_thread::sleep_for(milliseconds(50));
    for (size_t i = 0; i < queued.size(); ++i) {
        EXPECT_TRUE(base::Fd(accept4(first_.get(), nullptr, nullptr, SOCK_CLOEXEC)));
    }
    refuse(first_.get());
    expectRefusedByTheFirst();
}

}  // namespace
}  // namespace nixl::peer
