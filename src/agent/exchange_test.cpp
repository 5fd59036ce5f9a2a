// Metadata by address from C++: futures, changes that are told, and the end of agents meanwhile.
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/agent.h"

#include "testing/agents.h"
#include "testing/until.h"

namespace nixl {
namespace {

using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using testkit::errorOf;

AgentConfig listening() {
    AgentConfig config = testkit::memoryConfig();
    config.enableListenThread = true;
    config.listenHost = "127.0.0.1";
    config.listenPort = 0;
    return config;
}

MetadataPlace at(const Agent& agent) {
    return {"127.0.0.1", agent.listenPort(), {}, seconds(60)};
}

class ExchangeTest : public testing::Test {
  protected:
    RegistrationList part(size_t index) {
        return {{reinterpret_cast<uint64_t>(memory_.data()) + 64 * index, 64, 0, {}}};
    }
    DescriptorList range(size_t index) {
        DescriptorList list;
        list.append(reinterpret_cast<uint64_t>(memory_.data()) + 64 * index, 64, 0);
        return list;
    }

    std::array<char, 64U << 10> memory_{};
    Agent target_{"target", listening()};
    Agent other_{"other", testkit::memoryConfig()};
};

TEST_F(ExchangeTest, FuturesBecomeReady) {
    target_.registerMemory(part(0), {});
    other_.fetchRemoteMetadata("target", at(target_)).get();
    const DescriptorList first = range(0);
    const DescriptorList second = range(1);
    EXPECT_TRUE(other_.checkRemoteMetadata("target", &first));
    EXPECT_FALSE(other_.checkRemoteMetadata("target", &second));
    other_.sendLocalMetadata(at(target_)).get();
    EXPECT_THAT(target_.peers(), testing::ElementsAre("other"));
    target_.registerMemory(part(1), {});
    EXPECT_TRUE(testkit::eventually([&] { return other_.checkRemoteMetadata("target", &second); }));
    other_.invalidateLocalMetadata(at(target_)).get();
    EXPECT_TRUE(target_.peers().empty());
}

TEST_F(ExchangeTest, FuturesThrowWhyNot) {
    auto wrong = other_.fetchRemoteMetadata("somebody else", at(target_));
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { wrong.get(); }),
                AllOf(HasSubstr("target"), HasSubstr("somebody else")));
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { other_.checkRemoteMetadata("somebody else"); }),
                HasSubstr("answers"));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM,
                        [&] { other_.fetchRemoteMetadata("target", {"127.0.0.1", 0, {}, {}}); }),
                HasSubstr("port 0"));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { other_.fetchRemoteMetadata("target"); }),
                HasSubstr("central store"));
}

TEST_F(ExchangeTest, AnotherBackendIsAChangeOfEverything) {
    AgentConfig bare = listening();
    bare.backends.clear();
    Agent late("late", bare);
    other_.fetchRemoteMetadata("late", at(late)).get();
    late.createBackend("MEMORY", {});
    late.registerMemory(part(0), {});
    const DescriptorList first = range(0);
    EXPECT_TRUE(testkit::eventually([&] { return other_.checkRemoteMetadata("late", &first); }));
}

TEST_F(ExchangeTest, ManyThreadsRegisterAndFetchWhileAgentsCloseUnderThem) {
    std::atomic<bool> stop{false};
    std::thread changes([&] {
        for (size_t round = 0; !stop; ++round) {
            target_.registerMemory(part(1 + round % 1000), {});
            target_.deregisterMemory(part(1 + round % 1000), {});
        }
    });
    for (int round = 0; round < 20; ++round) {
        auto reader = std::make_unique<Agent>("reader", testkit::memoryConfig());
        std::vector<std::thread> threads;
        for (int i = 0; i < 3; ++i) {
            threads.emplace_back([&, i] {
                try {
                    for (int again = 0; again < 10; ++again) {
                        reader->fetchRemoteMetadata("target", at(target_)).get();
                        reader->sendLocalMetadata(at(target_)).get();
                        reader->checkRemoteMetadata("target");
                        if (i == 0) {
                            reader->removePeer("target");
                        }
                    }
                } catch (const Error& error) {
                    // Closed, or removed by the other thread.
                    EXPECT_TRUE(error.code() == ErrorCode::NOT_ALLOWED ||
                                error.code() == ErrorCode::CANCELED ||
                                error.code() == ErrorCode::NOT_FOUND)
                        << error.what();
                }
            });
        }
        if (round % 2 == 0) {
            reader->close();
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
    stop = true;
    changes.join();
    other_.fetchRemoteMetadata("target", at(target_)).get();
}

}  // namespace
}  // namespace nixl
