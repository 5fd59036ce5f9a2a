// A link whose data connections this test opens: it plays the target of each, and stops the world
// at the places where threads can meet.
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/reactor.h"
#include "base/work_pool.h"
#include "lanes/stream/target.h"
#include "peer/engine_impl.h"
#include "session/testing_access.h"

namespace nixl::peer {
namespace {

using std::chrono::seconds;

const base::Digest kKey{7};
constexpr seconds kPatience{20};

// What a test may put between a connection and its socket.
struct Hooks {
    std::function<void()> shutdown;  // instead of it
    bool noDescriptor = false;       // what the epoll set is told
    std::promise<void> gone;         // nobody has the connection any more
};

class HookedChannel final : public base::Channel {
  public:
    HookedChannel(std::unique_ptr<base::Channel> inner, std::shared_ptr<Hooks> hooks)
        : inner_(std::move(inner)), hooks_(std::move(hooks)) {}
    ~HookedChannel() override { hooks_->gone.set_value(); }
    Result<size_t> receive(iovec* vectors, size_t count) override {
        return inner_->receive(vectors, count);
    }
    Result<size_t> send(const iovec* vectors, size_t count) override {
        return inner_->send(vectors, count);
    }
    Result<size_t> sendWith(const iovec* vectors,
                            size_t count,
                            std::span<const int> descriptors) override {
        return inner_->sendWith(vectors, count, descriptors);
    }
    void allowDescriptors(size_t limit) override { inner_->allowDescriptors(limit); }
    std::vector<base::Fd> takeDescriptors(size_t count) override {
        return inner_->takeDescriptors(count);
    }
    int fd() const override { return hooks_->noDescriptor ? -1 : inner_->fd(); }
    void shutdown() override {
        hooks_->shutdown ? std::exchange(hooks_->shutdown, nullptr)() : inner_->shutdown();
    }

  private:
    const std::unique_ptr<base::Channel> inner_;
    const std::shared_ptr<Hooks> hooks_;
};

// The target's end of a data connection, blocking.
class PlayedTarget {
  public:
    PlayedTarget(base::Fd socket, NetworkAccess& access)
        : socket_(std::move(socket)), target_(access, kKey) {
        const timeval patience{kPatience.count(), 0};
        setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    }
    // Until there is something to answer.
    void awaitRequest() {
        while (!target_.wantsOutput()) {
            iovec in[8];
            msghdr message{};
            message.msg_iov = in;
            message.msg_iovlen = target_.inputSpace(in, 8);
            const ssize_t got = recvmsg(socket_.get(), &message, 0);
            ASSERT_GT(got, 0);
            ASSERT_TRUE(target_.received(static_cast<size_t>(got)).ok());
        }
    }
    void answer() {
        while (target_.wantsOutput()) {
            iovec out[8];
            msghdr message{};
            message.msg_iov = out;
            message.msg_iovlen = target_.output(out, 8);
            const ssize_t put = sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
            ASSERT_GT(put, 0);
            target_.sent(static_cast<size_t>(put));
        }
    }
    // Answers everything until the other side ends the connection.
    void serve() {
        while (true) {
            answer();
            char byte = 0;
            if (recv(socket_.get(), &byte, 1, MSG_PEEK) <= 0) {
                return;
            }
            awaitRequest();
        }
    }
    void hangUp() { socket_.reset(); }

  private:
    base::Fd socket_;
    StreamTarget target_;
};

// The first does not block.
std::pair<base::Fd, base::Fd> socketPair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    const int flags = fcntl(ends[0], F_GETFL);
    fcntl(ends[0], F_SETFL, flags | O_NONBLOCK);
    return {base::Fd(ends[0]), base::Fd(ends[1])};
}

// The end of one job.
using Outcome = std::shared_ptr<std::promise<Status>>;

class JobOwner final : public StreamJobOwner {
  public:
    JobOwner(Outcome outcome, std::function<void()> at_end)
        : outcome_(std::move(outcome)), atEnd_(std::move(at_end)) {}
    void streamed(Status status, std::vector<SegmentFailure> /*failures*/) override {
        if (atEnd_) {
            atEnd_();
        }
        outcome_->set_value(std::move(status));
    }

  private:
    const Outcome outcome_;
    const std::function<void()> atEnd_;
};

class LinkDataTest : public testing::Test {
  protected:
    LinkDataTest() : here_(kSize, 'h'), there_(kSize, 't') {
        access_.enter(1, there_.data(), there_.size());
        config_.self = {"alice", {1}};
        reactor_ = std::move(base::EpollReactor::create()).value();
        engine_ = std::make_shared<EngineImpl>(config_, *reactor_, pool_, access_);
        engine_->onReactor([&] { ASSERT_TRUE(engine_->start().ok()); });
        link_ = Link::make(*engine_, Identity{"bob", {2}});
        plan_.op = OpType::READ;
        run_ = {reinterpret_cast<uint64_t>(here_.data()),
                reinterpret_cast<uint64_t>(there_.data()),
                kSize,
                0,
                0,
                1};
        region_.id = 1;
        region_.generation = 1;
        plan_.bytes = kSize;
        plan_.segments = 1;
        plan_.remoteRegions = {&region_, 1};
        plan_.runs = {&run_, 1};
    }
    void TearDown() override {
        link_->close(Status::canceled("the test ends"), "");
        engine_->stop();
    }

    std::unique_ptr<PlayedTarget> connection(const std::shared_ptr<Hooks>& hooks) {
        auto [ours, theirs] = socketPair();
        engine_->onReactor([&, ours = &ours] {
            ConnectResult opened;
            opened.channel =
                std::make_unique<HookedChannel>(base::makeSocketChannel(std::move(*ours)), hooks);
            opened.result.key = kKey;
            link_->dataConnected(std::move(opened));
        });
        return std::make_unique<PlayedTarget>(std::move(theirs), access_);
    }
    std::shared_ptr<StreamJob> job(const Outcome& outcome,
                                   const std::function<void()>& at_end = {}) {
        const auto parts =
            std::make_shared<StreamParts>(plan_, std::make_shared<Grants>(access_.grant()), false);
        return std::make_shared<StreamJob>(plan_.bytes, parts,
                                           std::make_shared<JobOwner>(outcome, at_end));
    }
    static Status ended(const Outcome& outcome) {
        auto future = outcome->get_future();
        return future.wait_for(kPatience) == std::future_status::ready
                   ? future.get()
                   : Status::timeout("it never ended");
    }

    static constexpr size_t kSize = 100'000;
    std::vector<char> here_;
    std::vector<char> there_;
    TestAccess access_;
    EngineConfig config_;
    base::ThreadPool pool_;
    std::unique_ptr<base::EpollReactor> reactor_;
    std::shared_ptr<EngineImpl> engine_;
    std::shared_ptr<Link> link_;
    TransferPlan plan_;
    PlanRun run_{};
    PlanRegion region_{};
};

// The session is lost and its data connections are shut down, but bytes that had come already are
// still read, as from a socket they would be: not into memory of a transfer that was canceled.
TEST_F(LinkDataTest, CancelReachesConnectionsThatLeave) {
    const auto hooks = std::make_shared<Hooks>();
    hooks->shutdown = [] {};
    auto target = connection(hooks);
    const auto outcome = std::make_shared<std::promise<Status>>();
    const auto reading = job(outcome);
    link_->stream().start(reading, 0);
    target->awaitRequest();

    link_->close(Status::disconnected("removed"), "");
    engine_->onReactor([] {});
    link_->stream().cancel(reading, Status::canceled("canceled"));
    reading->abandon(Status::canceled("canceled"));
    EXPECT_FALSE(ended(outcome).ok());
    std::fill(here_.begin(), here_.end(), 'c');  // released: the memory is somebody else's
    target->answer();
    target->hangUp();
    ASSERT_EQ(hooks->gone.get_future().wait_for(kPatience), std::future_status::ready);
    EXPECT_EQ(std::count(here_.begin(), here_.end(), 'c'), static_cast<long>(kSize));
}

// One of two connections dies. Whoever hears of it posts again at once, and small transfers are
// told to one connection only: never to the dying one.
TEST_F(LinkDataTest, WhatIsPostedAgainAtTheEndOfAConnectionGoesToTheOther) {
    auto first = connection(std::make_shared<Hooks>());
    const auto failed = std::make_shared<std::promise<Status>>();
    const auto again = std::make_shared<std::promise<Status>>();
    const auto retry = job(again);
    link_->stream().start(job(failed, [&] { link_->stream().start(retry, kSize); }), 0);
    first->awaitRequest();
    auto second = connection(std::make_shared<Hooks>());
    auto serving = std::async(std::launch::async, [&] { second->serve(); });
    const auto between = std::make_shared<std::promise<Status>>();
    link_->stream().start(job(between), 0);  // the next turn is the first one's
    EXPECT_TRUE(ended(between).ok());

    first->hangUp();
    EXPECT_FALSE(ended(failed).ok());
    const Status status = ended(again);
    EXPECT_TRUE(status.ok()) << status.message();
    link_->close(Status::canceled("the test ends"), "");
    serving.wait();
}

// The same from another thread, between the end of the connection and the moment when the link
// hears of it.
TEST_F(LinkDataTest, WhatIsPostedToADyingConnectionGoesToTheOther) {
    const auto failed = std::make_shared<std::promise<Status>>();
    const auto late = std::make_shared<std::promise<Status>>();
    const auto posted = job(late);
    const auto hooks = std::make_shared<Hooks>();
    hooks->shutdown = [&] { link_->stream().start(posted, kSize); };
    auto first = connection(hooks);
    link_->stream().start(job(failed), 0);
    first->awaitRequest();
    auto second = connection(std::make_shared<Hooks>());
    auto serving = std::async(std::launch::async, [&] { second->serve(); });
    const auto between = std::make_shared<std::promise<Status>>();
    link_->stream().start(job(between), 0);
    EXPECT_TRUE(ended(between).ok());

    first->hangUp();
    EXPECT_FALSE(ended(failed).ok());
    const Status status = ended(late);
    EXPECT_TRUE(status.ok()) << status.message();
    link_->close(Status::canceled("the test ends"), "");
    serving.wait();
}

TEST_F(LinkDataTest, AnotherConnectionThatCannotBeAddedEndsNothing) {
    auto first = connection(std::make_shared<Hooks>());
    const auto outcome = std::make_shared<std::promise<Status>>();
    link_->stream().start(job(outcome), 0);
    first->awaitRequest();
    const auto hooks = std::make_shared<Hooks>();
    hooks->noDescriptor = true;
    const auto second = connection(hooks);
    ASSERT_EQ(hooks->gone.get_future().wait_for(kPatience), std::future_status::ready);
    first->answer();
    const Status status = ended(outcome);
    EXPECT_TRUE(status.ok()) << status.message();
}

// The only one: nobody is left to wait for.
TEST_F(LinkDataTest, TheOnlyConnectionThatCannotBeAddedIsAnError) {
    const auto hooks = std::make_shared<Hooks>();
    const auto outcome = std::make_shared<std::promise<Status>>();
    engine_->onReactor([&] {  // nothing is dialled before
        link_->stream().start(job(outcome), 0);
        hooks->noDescriptor = true;
        connection(hooks);
    });
    EXPECT_NE(ended(outcome).message().find("epoll"), std::string::npos);
}

// A peer that has lost connections without a word gets room for new ones.
TEST_F(LinkDataTest, OfSoManyServedConnectionsTheIdlestMakesRoom) {
    std::vector<base::Fd> peers;
    const auto over = [&](size_t index) {
        char byte = 0;
        return recv(peers[index].get(), &byte, 1, MSG_DONTWAIT) == 0;
    };
    for (unsigned i = 0; i <= StreamPool::kMaxServed; ++i) {
        if (i == StreamPool::kMaxServed) {
            EXPECT_FALSE(over(0));
        }
        auto [ours, theirs] = socketPair();
        ConnectResult opened;
        opened.channel = base::makeSocketChannel(std::move(ours));
        opened.result.key = kKey;
        engine_->onReactor([&] { link_->serve(std::move(opened)); });
        peers.push_back(std::move(theirs));
    }
    EXPECT_TRUE(over(0));
    for (size_t i = 1; i < peers.size(); ++i) {
        EXPECT_FALSE(over(i)) << i;
    }
}

TEST_F(LinkDataTest, SoManyPeersAndNoMore) {
    for (size_t i = 0; i < EngineImpl::kMaxLinks; ++i) {
        ASSERT_FALSE(engine_->checkIncoming({"a newcomer", {3}}).has_value()) << i;
        ASSERT_TRUE(engine_->setMetadata({std::to_string(i), {3}}, std::nullopt, nullptr).ok());
    }
    const auto refused = engine_->checkIncoming({"a newcomer", {3}});
    ASSERT_TRUE(refused.has_value());
    EXPECT_EQ(refused->code, RejectCode::LIMIT);
}

// Whoever finds a connection at work only leaves word; the one at work must look for it when it has
// let go of the lock.
TEST(ClientConnectionTest, AWakeThatFindsItAtWorkIsNotForgotten) {
    const auto reactor = std::move(base::EpollReactor::create()).value();
    base::PollSet poll_set(*reactor, std::chrono::microseconds(100));
    DataLoop loop(1, poll_set);
    auto [ours, theirs] = socketPair();
    std::atomic<int> asked{0};
    std::promise<void> again;
    std::shared_ptr<ClientConnection> connection;
    connection = std::make_shared<ClientConnection>(
        base::makeSocketChannel(std::move(ours)), "bob", kKey, loop, [&](StreamClient&) {
            // The second time is the last thing it does: what is woken now was not seen.
            if (++asked == 2) {
                std::async(std::launch::async, [&] { connection->wake(0); }).get();
            } else if (asked == 3) {
                again.set_value();
            }
        });
    ASSERT_TRUE(loop.add(connection, EPOLLOUT).ok());
    EXPECT_EQ(again.get_future().wait_for(kPatience), std::future_status::ready);
    loop.stop(Status::canceled("the test ends"));
    poll_set.stop();
    connection.reset();
}

// A request to write all of `source` somewhere.
StreamPart writing(const std::string& source) {
    const TestAccess access;
    Request request;
    request.op = OpType::WRITE;
    request.grant = grantId(access.grant());
    request.regions = {{1, 1}};
    request.runs = {{4096, source.size(), 0, 1, 0}};
    request.bytes = source.size();
    std::vector<MemoryRun> local{
        {reinterpret_cast<uint64_t>(source.data()), source.size(), 0, 1, 0}};
    return {std::make_shared<PreparedRequest>(request, access.grant(), std::move(local), 0), 1,
            nullptr};
}

// What a caller and a thread send in turn may be reordered on its way. So of much that is to be
// sent a caller who polls sends nothing, though it takes the answers that have come.
TEST(ClientConnectionTest, BulkIsSentByTheThreadsAlone) {
    const auto reactor = std::move(base::EpollReactor::create()).value();
    base::PollSet poll_set(*reactor, std::chrono::microseconds(100));
    for (const uint64_t bytes : {uint64_t{256} << 10, uint64_t{4} << 20}) {
        const std::string source(bytes, 's');
        const StreamPart part = writing(source);
        DataLoop loop(0, poll_set);
        auto [ours, theirs] = socketPair();
        bool fed = false;
        const auto connection = std::make_shared<ClientConnection>(
            base::makeSocketChannel(std::move(ours)), "bob", kKey, loop, [&](StreamClient& client) {
                if (!std::exchange(fed, true)) {
                    client.submit(part);
                }
            });
        ASSERT_TRUE(loop.add(connection, EPOLLIN).ok());
        connection->wake(0);  // takes the part, and sends nothing
        std::vector<char> sent(1 << 20);
        const auto take = [&, fd = theirs.get()] {
            return recv(fd, sent.data(), sent.size(), MSG_DONTWAIT);
        };
        EXPECT_EQ(take(), -1);
        connection->pollReady();
        EXPECT_EQ(take() > 0, bytes <= (1U << 20)) << bytes;
        EXPECT_TRUE(loop.serveReady());
        EXPECT_TRUE(bytes <= (1U << 20) || take() > 0);
        loop.stop(Status::canceled("the test ends"));
    }
    poll_set.stop();
}

}  // namespace
}  // namespace nixl::peer
