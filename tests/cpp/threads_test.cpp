// Eight threads on the same two agents: registering, preparing, posting, polling, waiting,
// cancelling, notifying, adding and removing peers. Run under ThreadSanitizer by ./dev test.
#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "support.h"

namespace nixl::crosstest {
namespace {

class ThreadsTest : public testing::TestWithParam<const char*> {
  protected:
    ThreadsTest() { a_.addPeer(b_.metadata()); }

    // Eight threads, each `rounds` times; stops where a test failed.
    template <typename Work>
    void eight(uint64_t count, const Work& work) {
        std::vector<std::thread> threads;
        for (unsigned number = 0; number < 8; ++number) {
            threads.emplace_back([&, number] {
                for (uint64_t i = 0; i < count && !HasFailure(); ++i) {
                    try {
                        work(number, i);
                    } catch (const Error& error) {
                        ADD_FAILURE() << "thread " << number << ": " << error.what();
                    }
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }

    Agent a_{"a", configFor(GetParam())};
    Agent b_{"b", configFor(GetParam())};
};

TEST_P(ThreadsTest, EachItsOwnMemory) {
    eight(rounds(20), [this](unsigned number, uint64_t round) {
        Loop loop(a_, 2UL * (1 + (uint64_t{number} * 37'001 + round * 4099) % 300'000));
        loop.fill(static_cast<char>(number + round));
        TransferHandle handle = loop.prepare();
        for (int post = 0; post < 3; ++post) {
            a_.postTransfer(handle);
            if (number % 2 == 0) {
                EXPECT_EQ(a_.waitTransfer(handle), XferState::DONE);
            } else {
                while (a_.checkTransfer(handle) == XferState::PENDING) {
                    std::this_thread::yield();
                }
            }
        }
        EXPECT_TRUE(loop.moved());
        EXPECT_GT(a_.transferTelemetry(handle.id()).totalBytes, 0U);
        a_.releaseTransfer(handle);
        a_.deregisterMemory(RegistrationList{{loop.bytes.data(), loop.bytes.size()}}, {});
    });
    EXPECT_EQ(a_.stats().at("regions"), 0U);
}

// Who closes an agent does not know who is inside it: calls end well or say that it is closed.
TEST_P(ThreadsTest, CloseMeetsCalls) {
    for (uint64_t round = 0; round < rounds(10) && !HasFailure(); ++round) {
        Agent agent("closing", configFor(GetParam()));
        agent.addPeer(b_.metadata());
        std::atomic<unsigned> inside{0};
        std::vector<std::thread> threads;
        for (unsigned number = 0; number < 8; ++number) {
            threads.emplace_back([&, number] {
                std::vector<char> bytes(4096UL * (1 + number));
                const RegistrationList list{{bytes.data(), bytes.size()}};
                ++inside;
                try {
                    for (;;) {
                        agent.registerMemory(list, {});
                        agent.metadata();
                        agent.waitNotifications(std::chrono::milliseconds(number % 2));
                        agent.deregisterMemory(list, {});
                        agent.stats();
                        agent.peers();
                    }
                } catch (const Error& error) {
                    EXPECT_EQ(error.code(), ErrorCode::NOT_ALLOWED) << error.what();
                }
            });
        }
        while (inside < threads.size()) {
            std::this_thread::yield();
        }
        // sleeps: so that the end meets the calls at another moment in each round
        std::this_thread::sleep_for(std::chrono::microseconds(200 * round));
        agent.close();
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
}

// Where one thread posts, others look, cancel and release: whatever they get is a typed error.
TEST_P(ThreadsTest, AllOnTheSameTransfers) {
    // Each transfer has its own memory: two copies to one place would be a race of the test's own.
    std::vector<std::unique_ptr<Loop>> loops;
    std::vector<TransferHandle> handles;
    for (int i = 0; i < 4; ++i) {
        loops.push_back(std::make_unique<Loop>(a_, 1 << 20));
        handles.push_back(loops.back()->prepare());
    }
    eight(rounds(100), [&](unsigned number, uint64_t round) {
        const HandleId id = handles[(number + round) % handles.size()].id();
        try {
            switch ((number + round / 4) % 8) {
                case 0:
                case 1:
                    a_.postTransfer(id);
                    break;
                case 2:
                    a_.waitTransfer(id, std::chrono::milliseconds(5));
                    break;
                case 3:
                    a_.cancelTransfer(id);
                    break;
                case 4:
                    a_.explainTransfer(id);
                    a_.transferFailures(id);
                    break;
                case 5:
                    a_.transferTelemetry(id);
                    break;
                case 6:
                    a_.dumpState();
                    a_.stats();
                    break;
                default:
                    a_.checkTransfer(id);
            }
        } catch (const Error& error) {
            const ErrorCode code = error.code();
            EXPECT_TRUE(code == ErrorCode::REPOST_ACTIVE || code == ErrorCode::TIMEOUT ||
                        code == ErrorCode::NOT_POSTED || code == ErrorCode::NO_TELEMETRY ||
                        code == ErrorCode::CANCELED)
                << error.what();
        }
    });
    for (TransferHandle& handle : handles) {
        try {
            a_.waitTransfer(handle, std::chrono::seconds(20));
        } catch (const Error& error) {
            EXPECT_NE(error.code(), ErrorCode::TIMEOUT) << error.what();
        }
        a_.postTransfer(handle);
        EXPECT_EQ(a_.waitTransfer(handle), XferState::DONE);
    }
}

TEST_P(ThreadsTest, ReleaseMeetsUse) {
    Loop loop(a_, 1 << 16);
    std::atomic<HandleId> current{0};
    eight(rounds(100), [&](unsigned number, uint64_t) {
        if (number == 0) {
            TransferHandle handle = loop.prepare();
            current = handle.id();
            a_.postTransfer(handle);
            std::this_thread::yield();
            a_.releaseTransfer(handle);
            return;
        }
        try {
            a_.transferState(current.load());
            a_.explainTransfer(current.load());
        } catch (const Error& error) {
            EXPECT_TRUE(error.code() == ErrorCode::INVALID_PARAM ||
                        error.code() == ErrorCode::NOT_POSTED)
                << error.what();
        }
    });
}

TEST_P(ThreadsTest, NotificationsArriveOnceInOrder) {
    const uint64_t count = rounds(100);
    std::vector<std::atomic<uint64_t>> next(8);
    std::atomic<bool> done{false};
    std::thread reader([&] {
        for (bool last = false; !last;) {
            last = done.load();
            for (const Notification& one : b_.takeNotifications()) {
                EXPECT_EQ(one.from, "a");
                const unsigned number = static_cast<unsigned>(one.message.at(0) - '0');
                EXPECT_EQ(one.message.substr(1), std::to_string(next.at(number).fetch_add(1)));
            }
        }
    });
    eight(count, [&](unsigned number, uint64_t round) {
        a_.sendNotification("b", std::to_string(number) + std::to_string(round));
    });
    done = true;
    reader.join();
    for (const auto& one : next) {
        EXPECT_EQ(one.load(), count);
    }
}

TEST_P(ThreadsTest, PeersComeAndGo) {
    std::vector<char> far(size_t{8} * 4096);
    b_.registerMemory(RegistrationList{{far.data(), far.size()}}, {});
    const std::string blob = b_.metadata();
    a_.addPeer(blob);
    Loop loop(a_, 8192);
    // Each thread writes to its own part.
    const auto part = [&](unsigned number) {
        return DescriptorList{{far.data() + size_t{4096} * number, 4096}};
    };
    eight(rounds(60), [&](unsigned number, uint64_t) {
        if (number < 2) {
            a_.addPeer(blob);
            try {
                a_.removePeer("b");
            } catch (const Error& error) {
                EXPECT_EQ(error.code(), ErrorCode::NOT_FOUND) << error.what();
            }
            return;
        }
        try {
            TransferHandle handle =
                a_.prepareTransfer(OpType::WRITE, loop.first, part(number), "b");
            a_.postTransfer(handle);
            a_.waitTransfer(handle, std::chrono::seconds(20));
        } catch (const Error& error) {
            EXPECT_TRUE(error.code() == ErrorCode::NOT_FOUND ||
                        error.code() == ErrorCode::REMOTE_DISCONNECT)
                << error.what();
        }
    });
    a_.addPeer(blob);
    TransferHandle handle = a_.prepareTransfer(OpType::WRITE, loop.first, part(0), "b");
    a_.postTransfer(handle);
    EXPECT_EQ(a_.waitTransfer(handle), XferState::DONE);
}

INSTANTIATE_TEST_SUITE_P(Over, ThreadsTest, testing::Values("MEMORY", "UCX"), [](const auto& info) {
    return std::string(info.param);
});

}  // namespace
}  // namespace nixl::crosstest
