// A dialer against places that refuse it in unkind ways.
#include "peer/dialer.h"

#include <future>
#include <string>

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/reactor.h"
#include "peer/handshake.h"
#include "peer/wire.h"

namespace nixl::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Says no to whoever comes before it has heard a word of him, and hangs up.
void refuse(int listener) {
    const Fd socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(socket);
    base::ByteWriter out;
    const size_t begin = beginFrame(out, FrameType::REJECT);
    Reject{RejectCode::AUTHENTICATION, "go away"}.encode(out);
    endFrame(out, begin);
    ASSERT_EQ(::send(socket.get(), out.bytes().data(), out.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(out.size()));
}

// The word of the first place counts, although what is sent there no longer arrives: the next
// place, where somebody listens too, is not tried.
TEST(Dialer, RefusalBeforeTheFirstByteCounts) {
    auto reactor = std::move(base::EpollReactor::create()).value();
    Endpoints places;
    places.bootId = bootId();
    places.abstract = "nixl-dialer-test-" + std::to_string(getpid());
    auto listener = listenAbstract(places.abstract);
    ASSERT_TRUE(listener.ok()) << listener.status().message();
    auto next = listenTcp(places.port);
    ASSERT_TRUE(next.ok()) << next.status().message();
    places.addresses = {std::string("\x7f\0\0\1", 4)};
    const auto targets = targetsOf(places, bootId());
    ASSERT_EQ(targets.size(), 2U);
    ASSERT_TRUE(targets.front().local);

    const Identity self{.name = "alice", .incarnation = {1}};
    const Identity peer{.name = "bob", .incarnation = {2}};
    const HandshakeSelf handshake{.self = self, .authKey = {}};
    auto dialer = std::make_shared<Dialer>(
        *reactor, targets,
        Connector(handshake, peer, ConnectionKind::CONTROL, "grant", GrantId{}, std::nullopt),
        seconds(20));
    std::promise<NotOpened> ended;
    // In one call on the reactor's thread: connected and refused before anything is sent.
    reactor->startTimer(Reactor::Clock::now(), [&] {
        dialer->start([&](const Opened&) { ended.set_value({}); },
                      [&](NotOpened why) { ended.set_value(std::move(why)); });
        refuse(listener.value().get());
    });
    const NotOpened why = ended.get_future().get();
    EXPECT_EQ(why.code, RejectCode::AUTHENTICATION) << why.status.message();
    EXPECT_EQ(why.status.code(), ErrorCode::NOT_ALLOWED);
    EXPECT_NE(why.status.message().find("go away"), std::string::npos) << why.status.message();
    const Fd nobody(accept4(next.value().get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    EXPECT_FALSE(nobody) << "it went on to the next place";
}

}  // namespace
}  // namespace nixl::peer
