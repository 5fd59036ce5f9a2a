// Every way an agent can end: with transfers in any state, with handles that outlive it, with
// threads inside its calls, in a forked child, at exit. Nothing hangs, crashes or is left behind.
#include <chrono>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"
#include "testing/agents.h"
#include "testing/until.h"

namespace nixl::crosstest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using testkit::errorOf;
using testkit::eventually;

// Not a measure of speed: what "about a second" is on a machine that is busy with other things.
constexpr seconds kSoon{15};

using AgentPtr = std::unique_ptr<Agent>;

AgentPtr make(const AgentConfig& config) {
    return std::make_unique<Agent>("ending", config);
}

class Stopwatch {
  public:
    bool soon() const { return std::chrono::steady_clock::now() - start_ < kSoon; }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

TEST(Endings, HandlesOutliveTheirAgent) {
    for (const char* backend : {"MEMORY", "UCX"}) {
        TransferHandle unposted;
        TransferHandle done;
        PreparedList list;
        RegistrationHandle registration;
        std::vector<char> bytes(4096);
        {
            Agent agent("ending", configFor(backend));
            Loop loop(agent, 4096);
            unposted = loop.prepare();
            done = loop.prepare();
            agent.postTransfer(done);
            agent.waitTransfer(done);
            list = agent.prepareList("", loop.first);
            registration = agent.registerMemory({{bytes.data(), bytes.size()}});
        }
        EXPECT_TRUE(registration.release().ok());
    }
}

TEST(Endings, PendingTransfersAreCanceled) {
    const Stopwatch watch;
    for (int round = 0; round < 3; ++round) {
        auto agent = make(configFor("MEMORY", {{"delay", "30s"}}));
        Loop loop(*agent, 4096);
        std::vector<TransferHandle> handles;
        for (int i = 0; i < 20; ++i) {
            handles.push_back(loop.prepare());
            EXPECT_EQ(agent->postTransfer(handles.back()), XferState::PENDING);
        }
        if (round == 1) {
            handles.clear();  // released while they are in progress
        }
        agent.reset();
    }
    EXPECT_TRUE(watch.soon());
}

TEST(Endings, LargeCopiesInFlight) {
    for (const char* backend : {"MEMORY", "UCX"}) {
        for (int round = 0; round < 5; ++round) {
            auto agent = make(configFor(backend));
            Loop loop(*agent, 16 << 20);
            Loop other(*agent, 16 << 20);
            TransferHandle one = loop.prepare();
            TransferHandle two = other.prepare();
            agent->postTransfer(one);
            agent->postTransfer(two, "never mind");
            agent.reset();
            // Once the agent is gone not one more byte changes.
            const std::vector<char> before = loop.bytes;
            std::this_thread::sleep_for(milliseconds(10));  // sleeps: for a byte that came late
            EXPECT_TRUE(before == loop.bytes);
        }
    }
}

TEST(Endings, ABackendThatCannotStop) {
    const Stopwatch watch;
    {
        auto agent = make(stuckConfig());
        Loop loop(*agent, 4096);
        TransferHandle handle = loop.prepare();
        EXPECT_EQ(agent->postTransfer(handle), XferState::PENDING);
        agent->cancelTransfer(handle.id());
        EXPECT_THAT(errorOf(ErrorCode::CANCELED, [&] { agent->checkTransfer(handle); }),
                    HasSubstr("remote_unconfirmed"));
        // The backend may still touch the memory, so the transfer cannot be posted again.
        errorOf(ErrorCode::REPOST_ACTIVE, [&] { agent->postTransfer(handle); });
        agent->releaseTransfer(handle);
        TransferHandle other = loop.prepare();
        agent->postTransfer(other);
        agent.reset();
    }
    EXPECT_TRUE(watch.soon());
    releaseStuck();  // the late ends find nobody, and harm nobody
}

TEST(Endings, DeregisteringWaitsForWhoUsesIt) {
    AgentConfig config = stuckConfig();
    config.peerTimeout = milliseconds(200);
    auto agent = make(config);
    Loop loop(*agent, 4096);
    const RegistrationList list{{loop.bytes.data(), loop.bytes.size()}};
    TransferHandle handle = loop.prepare();
    agent->postTransfer(handle);
    EXPECT_THAT(errorOf(ErrorCode::TIMEOUT, [&] { agent->deregisterMemory(list, {}); }),
                HasSubstr("descriptor 0"));
    EXPECT_EQ(agent->stats().at("regions"), 1U) << "the region stays registered";
    const uint64_t before = agent->stats().at("wait_sleeps");
    std::thread release([&] {
        EXPECT_TRUE(eventually([&] { return agent->stats().at("wait_sleeps") > before; }));
        releaseStuck();
    });
    EXPECT_EQ(agent->waitTransfer(handle, seconds(20)), XferState::DONE);
    release.join();
    agent->deregisterMemory(list, {});
    EXPECT_EQ(agent->stats().at("regions"), 0U);
}

TEST(Endings, DeadlineOfATransfer) {
    AgentConfig config = configFor("MEMORY", {{"delay", "30s"}});
    config.xferTimeout = milliseconds(50);
    const Stopwatch watch;
    auto agent = make(config);
    Loop loop(*agent, 4096);
    TransferHandle handle = loop.prepare();
    agent->postTransfer(handle);
    EXPECT_THAT(errorOf(ErrorCode::TIMEOUT, [&] { agent->waitTransfer(handle, kSoon); }),
                HasSubstr("xfer_timeout"));
    EXPECT_TRUE(watch.soon());
}

// An agent ends in the moment in which a deadline passes.
TEST(Endings, DeadlineMeetsTheEnd) {
    AgentConfig config = configFor("MEMORY", {{"delay", "30s"}});
    config.xferTimeout = milliseconds(1);
    for (int round = 0; round < 60; ++round) {
        auto agent = make(config);
        Loop loop(*agent, 4096);
        TransferHandle handle = loop.prepare();
        agent->postTransfer(handle);
        // sleeps: until about the deadline; before, at and after it, all must go well
        std::this_thread::sleep_for(std::chrono::microseconds(900 + 10 * (round % 30)));
        const Stopwatch watch;
        agent.reset();
        EXPECT_TRUE(watch.soon());
    }
}

// With neither a thread of its own nor the core's, those who poll or wait move it.
TEST(Endings, BackendsWithoutAThread) {
    AgentConfig config = configFor("MEMORY", {{"manual", "on"}});
    config.enableProgThread = false;
    auto agent = make(config);
    Loop loop(*agent, 4096);
    TransferHandle waited = loop.prepare();
    TransferHandle polled = loop.prepare();
    TransferHandle any = loop.prepare();
    loop.fill(1);
    agent->postTransfer(waited);
    EXPECT_EQ(agent->waitTransfer(waited, kSoon), XferState::DONE);
    EXPECT_TRUE(loop.moved());
    agent->postTransfer(polled);
    const Stopwatch watch;
    while (agent->checkTransfer(polled) == XferState::PENDING && watch.soon()) {
    }
    EXPECT_EQ(agent->checkTransfer(polled), XferState::DONE);
    agent->postTransfer(any);
    EXPECT_EQ(agent->waitAny(std::vector<HandleId>{any.id()}, kSoon), 0);
    agent->postTransfer(any);
    agent.reset();  // pending
}

TEST(Endings, ThreadsInsideItsCalls) {
    const Stopwatch watch;
    auto agent = make(configFor("MEMORY", {{"delay", "30s"}}));
    Loop loop(*agent, 4096);
    TransferHandle handle = loop.prepare();
    agent->postTransfer(handle);
    std::thread waiting([&] {
        try {
            agent->waitTransfer(handle);
        } catch (const Error& error) {
            EXPECT_TRUE(error.code() == ErrorCode::CANCELED ||
                        error.code() == ErrorCode::NOT_ALLOWED ||
                        error.code() == ErrorCode::INVALID_PARAM)
                << error.what();
        }
    });
    EXPECT_TRUE(eventually([&] { return agent->stats().at("wait_sleeps") > 0; }));
    agent->close();
    waiting.join();
    EXPECT_TRUE(watch.soon());
    errorOf(ErrorCode::NOT_ALLOWED, [&] { agent->postTransfer(handle); });
}

// What a child of fork() may do with its parent's agent: nothing but be told so, and end.
int inChild(Agent* agent, TransferHandle& handle) {
    const std::vector<std::function<void()>> calls = {
        [&] { agent->postTransfer(handle.id()); }, [&] { agent->checkTransfer(handle.id()); },
        [&] { agent->takeNotifications(); },       [&] { agent->metadata(); },
        [&] { agent->createBackend("MEMORY"); },   [&] { agent->releaseTransfer(handle.id()); }};
    for (const auto& call : calls) {
        const std::string text = errorOf(ErrorCode::NOT_ALLOWED, call);
        if (text.find(std::to_string(getpid())) == std::string::npos ||
            text.find(std::to_string(getppid())) == std::string::npos) {
            return 2;
        }
    }
    handle = TransferHandle();
    delete agent;
    Agent own("child", testkit::memoryConfig());  // a new one works
    Loop loop(own, 1 << 20);
    TransferHandle copied = loop.prepare();
    own.postTransfer(copied);
    return own.waitTransfer(copied, kSoon) == XferState::DONE ? 0 : 3;
}

TEST(Endings, ForkInAnyState) {
    for (const char* delay : {"0", "100ms"}) {
        for (const bool posted : {false, true}) {
            auto agent = make(configFor("MEMORY", {{"delay", delay}}));
            Loop loop(*agent, 4 << 20);
            loop.fill(7);
            TransferHandle handle = loop.prepare();
            if (posted) {
                agent->postTransfer(handle);
            }
            const pid_t child = fork();
            ASSERT_GE(child, 0);
            if (child == 0) {
                const int status = inChild(agent.release(), handle);
                std::_Exit(testing::Test::HasFailure() ? 4 : status);
            }
            int status = -1;
            ASSERT_EQ(waitpid(child, &status, 0), child);
            EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
            EXPECT_EQ(WEXITSTATUS(status), 0) << "delay " << delay << ", posted " << posted;
            if (!posted) {
                agent->postTransfer(handle);
            }
            EXPECT_EQ(agent->waitTransfer(handle, kSoon), XferState::DONE);
            EXPECT_TRUE(loop.moved());
        }
    }
}

// exit() with an agent that nobody destroys, or that a static destroys, in each state.
enum class State : uint8_t { IDLE, PENDING, COPYING, CLOSED };

[[noreturn]] void exitIn(const char* backend, State state, bool destroyed) {
    const BackendParams params =
        state == State::PENDING ? BackendParams{{"delay", "30s"}} : BackendParams{};
    static AgentPtr global;
    AgentPtr agent = make(configFor(backend, params));
    auto* const loop = new Loop(*agent, 16 << 20);
    auto* const handle = new TransferHandle(loop->prepare());
    if (state == State::PENDING || state == State::COPYING) {
        agent->postTransfer(*handle);
    } else if (state == State::CLOSED) {
        agent->close();
    }
    if (destroyed) {
        global = std::move(agent);
    } else {
        // NOLINTNEXTLINE(bugprone-unused-return-value)
        static_cast<void>(agent.release());
    }
    std::exit(0);
}

class ExitTest : public testing::TestWithParam<std::tuple<State, bool>> {};

TEST_P(ExitTest, IsClean) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto [state, destroyed] = GetParam();
    EXPECT_EXIT(exitIn("MEMORY", state, destroyed), testing::ExitedWithCode(0), "");
    if (state != State::PENDING) {
        EXPECT_EXIT(exitIn("UCX", state, destroyed), testing::ExitedWithCode(0), "");
    }
}

INSTANTIATE_TEST_SUITE_P(
    In,
    ExitTest,
    testing::Combine(testing::Values(State::IDLE, State::PENDING, State::COPYING, State::CLOSED),
                     testing::Bool()));

}  // namespace
}  // namespace nixl::crosstest
