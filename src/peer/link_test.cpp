// An engine against a peer that this test plays over a plain socket: what comes late of a
// connection that has been replaced.
#include "peer/link.h"

#include <chrono>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/reactor.h"
#include "base/socket.h"
#include "base/work_pool.h"
#include "connect/endpoints.h"
#include "peer/engine_impl.h"
#include "session/testing_access.h"

namespace nixl::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

std::string frame(FrameType type, const auto& content) {
    base::ByteWriter out;
    const size_t begin = beginFrame(out, type);
    content.encode(out);
    endFrame(out, begin);
    return out.take();
}

// The other side of a control connection, blocking.
class PlainPeer {
  public:
    PlainPeer(const HandshakeSelf& self, const Identity& there, const Key& grant)
        : connector_(self,
                     there,
                     ConnectionKind::CONTROL,
                     base::asView(grant),
                     grantId(grant),
                     std::nullopt) {}

    // As far as CHALLENGE.
    void begin(const base::Target& target) {
        auto fd = base::startConnect(target);
        ASSERT_TRUE(fd.ok()) << fd.status().message();
        socket_ = std::move(fd).value();
        const timeval patience{20, 0};
        setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        fcntl(socket_.get(), F_SETFL, 0);
        say(connector_.start());
        auto answer = take();
        ASSERT_TRUE(answer.ok()) << answer.status().message();
        auth_ = answer.value();
    }
    void sayAuth() { say(auth_); }
    // What it is refused with.
    std::optional<RejectCode> awaitRefusal() {
        static_cast<void>(take().ok());
        return connector_.refused() ? std::optional(connector_.refused()->code) : std::nullopt;
    }
    void awaitReady() {
        const auto answer = take();
        ASSERT_TRUE(answer.ok()) << answer.status().message();
        ASSERT_TRUE(connector_.done());
    }
    void say(const std::string& bytes) {
        ASSERT_EQ(::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                  static_cast<ssize_t>(bytes.size()));
    }

  private:
    Result<std::string> take() {
        char head[kFrameHeader];
        if (recv(socket_.get(), head, sizeof(head), MSG_WAITALL) != sizeof(head)) {
            return Status::disconnected("closed");
        }
        const auto header = readHeader({head, sizeof(head)});
        std::string body(header.ok() ? header.value().length : 0, '\0');
        if (!header.ok() || recv(socket_.get(), body.data(), body.size(), MSG_WAITALL) !=
                                static_cast<ssize_t>(body.size())) {
            return Status::disconnected("closed");
        }
        return connector_.onFrame(header.value().type, body);
    }

    Connector connector_;
    std::string auth_;
    base::Fd socket_;
};

// A close reason that a caller has read, and that the reactor comes to when the peer has a new
// connection already: the new one stays.
TEST(Link, CloseReasonOfAReplacedConnectionEndsNothing) {
    auto reactor = std::move(base::EpollReactor::create()).value();
    base::ThreadPool pool;
    TestAccess access;
    EngineConfig config;
    config.self = {"bob", {2}};
    config.authKey = "sixteen bytes and more";  // with it a peer may replace its connection
    auto engine = std::make_shared<EngineImpl>(config, *reactor, pool, access);
    engine->onReactor([&] { ASSERT_TRUE(engine->start().ok()); });
    const auto endpoints = Endpoints::decode(engine->connectionInfo()).value();
    const base::Target target = targetsOf(endpoints, base::bootId()).front();
    const HandshakeSelf alice{.self = {"alice", {1}}, .authKey = config.authKey};

    PlainPeer first(alice, config.self, access.grant());
    first.begin(target);
    first.sayAuth();
    first.awaitReady();
    PlainPeer second(alice, config.self, access.grant());
    second.begin(target);
    std::shared_ptr<Link> link;
    const auto until = Clock::now() + seconds(20);
    while ((link == nullptr || !link->up()) && Clock::now() < until) {
        link = engine->find(alice.self);
    }
    ASSERT_TRUE(link != nullptr && link->up());

    std::promise<void> stopped;
    std::promise<void> go_on;
    reactor->run([&] {
        stopped.set_value();
        go_on.get_future().wait();
    });
    stopped.get_future().wait();
    first.say(frame(FrameType::BYE, Reject{RejectCode::CLOSING, "for now"}));
    second.sayAuth();
    link->control().pollReady();  // reads the close reason
    go_on.set_value();
    second.awaitReady();

    NotificationPiece piece;
    piece.sequence = 1;
    piece.bytes = "still here";
    piece.size = piece.bytes.size();
    std::this_thread::sleep_for(milliseconds(20));  // sleeps: for what would end it
    second.say(frame(FrameType::NOTIFICATION, piece));
    std::vector<std::pair<std::string, std::string>> arrived;
    while (arrived.empty() && Clock::now() < until) {
        arrived = access.take();
    }
    ASSERT_EQ(arrived.size(), 1U);
    EXPECT_EQ(arrived[0].second, "still here");
    EXPECT_EQ(access.lost(), 0U);
    engine->stop();
}

// Both sides dial, and the peer's HELLO comes before the own connection is through: the own one, of
// the smaller incarnation, is being taken by the peer, so the peer's AUTH comes too late. Were it
// taken, each side would close its own for the other's.
TEST(Link, AnAuthThatMeetsTheOwnConnectionIsRefused) {
    auto reactor = std::move(base::EpollReactor::create()).value();
    base::ThreadPool pool;
    TestAccess access;
    EngineConfig config;
    config.self = {"bob", {2}};
    auto engine = std::make_shared<EngineImpl>(config, *reactor, pool, access);
    engine->onReactor([&] { ASSERT_TRUE(engine->start().ok()); });
    const auto endpoints = Endpoints::decode(engine->connectionInfo()).value();
    const HandshakeSelf carol{.self = {"carol", {3}}, .authKey = {}};
    PlainPeer peer(carol, config.self, access.grant());
    peer.begin(targetsOf(endpoints, base::bootId()).front());

    // Where carol listens: a connection is taken and HELLO is not answered.
    const base::Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
    ASSERT_EQ(listen(listener.get(), 8), 0);
    ASSERT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    Endpoints there;
    there.bootId = base::bootId();
    there.port = ntohs(address.sin_port);
    there.addresses = {std::string("\x7f\0\0\1", 4)};
    ASSERT_TRUE(
        engine->setMetadata(carol.self, there, std::make_shared<Grants>(access.grant())).ok());
    const auto link = engine->find(carol.self);
    std::promise<Status> ready;
    link->whenReady([&](const Status& status) { ready.set_value(status); });
    const auto until = Clock::now() + seconds(20);
    bool dialling = false;
    while (!dialling && Clock::now() < until) {
        engine->onReactor([&] {
            dialling = link->dialling();
            if (dialling) {
                peer.sayAuth();
            }
        });
    }
    ASSERT_TRUE(dialling);
    EXPECT_EQ(peer.awaitRefusal(), RejectCode::DUPLICATE);
    link->close(Status::canceled("the test ends"), "");
    EXPECT_FALSE(ready.get_future().get().ok());
    engine->stop();
}

}  // namespace
}  // namespace nixl::peer
