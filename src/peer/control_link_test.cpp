// Two control links with a pair of sockets between them: events in their order, connections that
// come and go, and what belongs to which.
#include "peer/control_link.h"

#include <future>
#include <mutex>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/reactor.h"

namespace nixl::peer {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr seconds kPatience{20};

class Recorder final : public ControlLink::Owner {
  public:
    void notified(std::string message, std::shared_ptr<void> credit) override {
        add("notified " + message);
        const std::lock_guard lock(mutex_);
        credits_.push_back(std::move(credit));
    }
    void onFrame(uint64_t connection,
                 FrameType /*type*/,
                 std::string_view body,
                 const std::vector<base::Fd>& descriptors) override {
        add("frame " + std::string(body) + " of " + std::to_string(connection) + " with " +
            std::to_string(descriptors.size()));
    }
    void controlLost(const Status& /*why*/) override {
        if (link.lock()->drop()) {
            add("lost");
        }
    }
    void sessionEnded(const Status& why) override { add("ended " + why.message()); }
    void ticked() override {}

    void add(std::string what) {
        const std::lock_guard lock(mutex_);
        seen_.push_back(std::move(what));
    }
    // Waits for so many, and takes them.
    std::vector<std::string> take(size_t count) {
        const auto until = std::chrono::steady_clock::now() + kPatience;
        while (std::chrono::steady_clock::now() < until) {
            {
                const std::lock_guard lock(mutex_);
                if (seen_.size() >= count) {
                    return std::exchange(seen_, {});
                }
            }
            std::this_thread::yield();
        }
        const std::lock_guard lock(mutex_);
        return std::exchange(seen_, {});
    }

    std::weak_ptr<ControlLink> link;  // as the owner of one does, it lets a lost connection go

  private:
    std::mutex mutex_;
    std::vector<std::string> seen_;
    std::vector<std::shared_ptr<void>> credits_;
};

struct End {
    explicit End(const std::string& peer)
        : reactor(std::move(base::EpollReactor::create()).value()),
          pollSet(*reactor, std::chrono::microseconds(50)),
          link(std::make_shared<ControlLink>(ControlLink::Context{peer, *reactor, pollSet, {}},
                                             owner)) {
        owner->link = link;
    }
    ~End() {
        on([&] {
            link->fail(Status::canceled("the test ends"));
            pollSet.stop();
        });
    }
    // On the reactor thread, to its end.
    void on(const std::function<void()>& task) {
        std::promise<void> done;
        reactor->run([&] {
            task();
            done.set_value();
        });
        done.get_future().wait();
    }
    void adopt(base::Fd socket, uint64_t epoch, bool resumed, uint64_t received = 0) {
        on([&] {
            link->replace();
            ConnectResult opened;
            opened.channel = base::makeSocketChannel(std::move(socket));
            opened.result.peerResume = {epoch, received, 0};
            opened.result.resumed = resumed;
            opened.result.key = {1};
            opened.process.local = true;
            EXPECT_TRUE(link->adopt(opened).ok());
            EXPECT_TRUE(link->begin({}).ok());
            link->tick();
        });
    }
    Done ended(const std::string& name) {
        return [this, name](const Status& status) {
            owner->add(name + (status.ok() ? " sent" : " failed: " + status.message()));
        };
    }

    std::unique_ptr<Reactor> reactor;
    base::PollSet pollSet;
    const std::shared_ptr<Recorder> owner = std::make_shared<Recorder>();
    std::shared_ptr<ControlLink> link;
};

class ControlLinkTest : public testing::Test {
  protected:
    void connect(uint64_t epoch, bool resumed = false) {
        int sockets[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets), 0);
        far_.on([&] { far_.link->drop(); });
        near_.on([&] { near_.link->drop(); });
        const auto far = far_.link->earlier();
        const auto near = near_.link->earlier();
        near_.adopt(base::Fd(sockets[0]), epoch, resumed, resumed ? far->resume.received : 0);
        far_.adopt(base::Fd(sockets[1]), epoch, resumed, resumed ? near->resume.received : 0);
    }
    End near_{"far"};
    End far_{"near"};
};

TEST_F(ControlLinkTest, WhatWaitedForAConnectionGoesInOrder) {
    EXPECT_TRUE(near_.link->send("one", near_.ended("one"), nullptr).ok());
    std::atomic<uint64_t> token{0};
    EXPECT_TRUE(near_.link->send("two", near_.ended("two"), &token).ok());
    EXPECT_TRUE(near_.link->send("three", near_.ended("three"), nullptr).ok());
    EXPECT_EQ(near_.link->waiting(), 3U);
    EXPECT_TRUE(near_.link->withdraw(token));
    EXPECT_FALSE(near_.link->withdraw(token));
    EXPECT_FALSE(near_.link->earlier());
    EXPECT_FALSE(near_.link->key());
    connect(7);
    EXPECT_THAT(far_.owner->take(2), ElementsAre("notified one", "notified three"));
    EXPECT_THAT(near_.owner->take(2), ElementsAre("one sent", "three sent"));
    EXPECT_EQ(near_.link->earlier()->resume.epoch, 7U);
    EXPECT_TRUE(near_.link->key());
}

TEST_F(ControlLinkTest, FramesGoOverTheirConnectionOnlyAndBringDescriptors) {
    connect(7);
    EXPECT_FALSE(near_.link->sendFrame(2, FrameType::HOST_OFFER, "early", {}));
    std::vector<base::Fd> pages;
    pages.emplace_back(dup(0));
    pages.emplace_back(dup(0));
    EXPECT_TRUE(near_.link->sendFrame(1, FrameType::HOST_OFFER, "offer", std::move(pages)));
    EXPECT_THAT(far_.owner->take(1), ElementsAre("frame offer of 1 with 2"));
    connect(7, true);
    EXPECT_FALSE(near_.link->sendFrame(1, FrameType::HOST_OFFER, "late", {}));
    EXPECT_TRUE(near_.link->sendFrame(2, FrameType::HOST_OFFER, "again", {}));
    EXPECT_THAT(far_.owner->take(1), ElementsAre("frame again of 2 with 0"));
}

TEST_F(ControlLinkTest, ABrokenConnectionKeepsTheSession) {
    connect(7);
    near_.on([&] { EXPECT_TRUE(near_.link->drop()); });
    EXPECT_FALSE(near_.link->up());
    near_.on([&] { EXPECT_FALSE(near_.link->drop()); });
    EXPECT_THAT(far_.owner->take(1), ElementsAre("lost"));
    EXPECT_TRUE(near_.link->send("kept", near_.ended("kept"), nullptr).ok());
    connect(7, true);
    EXPECT_THAT(far_.owner->take(1), ElementsAre("notified kept"));
    EXPECT_THAT(near_.owner->take(1), ElementsAre("kept sent"));
}

TEST_F(ControlLinkTest, AFailedSessionEndsWhatWaitsAndMayBeginAnew) {
    EXPECT_TRUE(near_.link->send("one", near_.ended("one"), nullptr).ok());
    near_.on([&] {
        EXPECT_FALSE(near_.link->fail(Status::disconnected("nobody there"))) << "none was";
        near_.link->dispatch();
    });
    EXPECT_THAT(near_.owner->take(1), ElementsAre("one failed: nobody there"));
    connect(7);
    near_.on([&] {
        EXPECT_TRUE(near_.link->fail(Status::disconnected("gone")));
        near_.link->dispatch();
    });
    EXPECT_FALSE(near_.link->earlier());
    EXPECT_THAT(far_.owner->take(1), ElementsAre("lost"));
    connect(8);
    EXPECT_TRUE(near_.link->send("two", near_.ended("two"), nullptr).ok());
    EXPECT_THAT(far_.owner->take(1), ElementsAre("notified two"));
}

// A caller who polls has read the close reason, and the reactor lets the closed connection go
// before it comes to it.
TEST_F(ControlLinkTest, ACloseReasonCountsAlthoughTheConnectionIsClosedBehindIt) {
    connect(7);
    far_.on([&] {
        near_.on([&] {
            base::ByteWriter body;
            Reject{RejectCode::CLOSING, "done for today"}.encode(body);
            near_.link->bye(body.bytes());
            near_.link->fail(Status::canceled("closed"));
        });
        far_.link->pollReady();
        EXPECT_TRUE(far_.link->drop());
    });
    const auto seen = far_.owner->take(1);
    EXPECT_THAT(seen, testing::Contains(AllOf(HasSubstr("ended"), HasSubstr("done for today"))));
}

TEST_F(ControlLinkTest, GarbageIsAViolation) {
    int sockets[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets), 0);
    near_.adopt(base::Fd(sockets[0]), 7, false);
    const base::Fd other(sockets[1]);
    const std::string garbage(64, '\xff');
    ASSERT_EQ(write(other.get(), garbage.data(), garbage.size()), 64);
    EXPECT_THAT(near_.owner->take(1), ElementsAre("lost"));
}

}  // namespace
}  // namespace nixl::peer
