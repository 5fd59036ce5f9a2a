// Backend UCX between agents of two processes: bytes, notifications, and the other side's death.
// The lanes host and stream both run here; the second process is a fork made before any agent.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nixl/agent.h"
#include "nixl/plugin.h"

#include "backend/plugins.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr size_t kSize = 32 << 20;

AgentConfig withLanes(const std::string& lanes) {
    EXPECT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
    AgentConfig config;
    config.backends = {"UCX"};
    config.lanes = lanes;
    config.peerTimeout = milliseconds(3000);
    return config;
}

void sendText(int fd, const std::string& text) {
    const uint64_t size = text.size();
    ASSERT_EQ(write(fd, &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
    for (size_t at = 0; at < text.size();) {
        const ssize_t put = write(fd, text.data() + at, text.size() - at);
        ASSERT_GT(put, 0);
        at += static_cast<size_t>(put);
    }
}

bool readAll(int fd, void* into, size_t size) {
    for (size_t at = 0; at < size;) {
        const ssize_t got = read(fd, static_cast<char*>(into) + at, size - at);
        if (got <= 0) {
            return false;
        }
        at += static_cast<size_t>(got);
    }
    return true;
}

std::string receiveText(int fd) {
    uint64_t size = 0;
    if (!readAll(fd, &size, sizeof(size))) {
        return {};
    }
    std::string text(size, '\0');
    return readAll(fd, text.data(), size) ? text : std::string();
}

char patternAt(size_t i) {
    return static_cast<char>(i * 11 + i / 4099);
}

// The other process: an agent "bob" that does what it is told, a command a line.
void runBob(const std::string& lanes, int in, int out) {
    std::vector<char> memory(kSize);
    for (size_t i = 0; i < kSize; ++i) {
        memory[i] = patternAt(i);
    }
    Agent agent("bob", withLanes(lanes));
    const RegistrationList list{{memory.data(), memory.size()}};
    agent.registerMemory(list, {});
    sendText(out, std::to_string(reinterpret_cast<uint64_t>(memory.data())));
    sendText(out, agent.metadata());
    while (true) {
        const std::string command = receiveText(in);
        if (command == "memory") {
            sendText(out, std::string(memory.begin(), memory.end()));
        } else if (command == "notification") {
            std::vector<Notification> got;
            const auto until = Clock::now() + seconds(10);
            while (got.empty() && Clock::now() < until) {
                agent.waitNotifications(milliseconds(100));
                got = agent.takeNotifications();
            }
            sendText(out, got.empty() ? "none" : got[0].from + ":" + got[0].message);
        } else if (command == "answer") {
            agent.sendNotification("alice", "from bob");
            sendText(out, "sent");
        } else if (command == "deregister") {
            agent.deregisterMemory(list, {});
            sendText(out, "done");
        } else {
            return;  // "end", or the test is gone
        }
    }
}

class TwoProcessTest : public testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        int to[2];
        int from[2];
        ASSERT_EQ(pipe(to), 0);
        ASSERT_EQ(pipe(from), 0);
        child_ = fork();
        if (child_ == 0) {
            close(to[1]);
            close(from[0]);
            try {
                runBob(GetParam(), to[0], from[1]);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "bob: %s\n", error.what());
                _exit(1);
            }
            _exit(0);
        }
        close(to[0]);
        close(from[1]);
        to_ = to[1];
        from_ = from[0];
        remote_ = std::stoull(receiveText(from_));
        metadata_ = receiveText(from_);
        agent_ = std::make_unique<Agent>("alice", withLanes(GetParam()));
        for (size_t i = 0; i < kSize; ++i) {
            local_[i] = static_cast<char>(i * 3 + i / 1021);
        }
        agent_->registerMemory(RegistrationList{{local_.data(), local_.size()}}, {});
        ASSERT_EQ(agent_->addPeer(metadata_), "bob");
    }
    void TearDown() override {
        agent_.reset();
        if (child_ > 0) {
            kill(child_, SIGCONT);
            close(to_);
            int status = 0;
            waitpid(child_, &status, 0);
            if (!killed_) {
                EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
            }
        }
        close(from_);
    }
    std::string ask(const std::string& command) {
        sendText(to_, command);
        return receiveText(from_);
    }
    TransferHandle prepare(OpType op, uint64_t offset, uint64_t size) {
        return agent_->prepareTransfer(op, DescriptorList{{local_.data() + offset, size}},
                                       DescriptorList{{remote_ + offset, size}}, "bob");
    }
    // The code a call throws, OK where it does not.
    template <typename Call>
    static ErrorCode thrown(Call&& call) {
        try {
            call();
        } catch (const Error& error) {
            message() = error.what();
            return error.code();
        }
        return ErrorCode::OK;
    }
    static std::string& message() {
        static std::string text;
        return text;
    }

    pid_t child_ = -1;
    bool killed_ = false;
    int to_ = -1;
    int from_ = -1;
    uint64_t remote_ = 0;
    std::string metadata_;
    std::vector<char> local_ = std::vector<char>(kSize);
    std::unique_ptr<Agent> agent_;
};

TEST_P(TwoProcessTest, WritesWithNotificationAndReads) {
    for (const uint64_t size : {1UL, 4096UL, 1UL << 20, kSize}) {
        TransferHandle write = prepare(OpType::WRITE, 0, size);
        agent_->postTransfer(write, "n" + std::to_string(size));
        EXPECT_EQ(agent_->waitTransfer(write, seconds(20)), XferState::DONE);
        EXPECT_EQ(ask("notification"), "alice:n" + std::to_string(size));
        const std::string there = ask("memory");
        EXPECT_EQ(std::memcmp(there.data(), local_.data(), size), 0) << size;
        std::memset(local_.data(), 0, size);
        TransferHandle read = prepare(OpType::READ, 0, size);
        agent_->postTransfer(read);
        EXPECT_EQ(agent_->waitTransfer(read, seconds(20)), XferState::DONE);
        EXPECT_EQ(std::memcmp(there.data(), local_.data(), size), 0) << size;
        EXPECT_EQ(agent_->explainTransfer(read.id()).lane, GetParam());
    }
}

TEST_P(TwoProcessTest, ScatteredByIndex) {
    DescriptorList mine(MemType::DRAM);
    DescriptorList theirs(MemType::DRAM);
    for (uint64_t i = 0; i < 4000; ++i) {
        const uint64_t at = (i * 2654435761U) % 8000 * 4096;
        mine.append(reinterpret_cast<uint64_t>(local_.data()) + i * 4096, 4096);
        theirs.append(remote_ + at, 4096);
    }
    TransferHandle read = agent_->prepareTransfer(OpType::READ, mine, theirs, "bob");
    agent_->postTransfer(read);
    ASSERT_EQ(agent_->waitTransfer(read, seconds(20)), XferState::DONE);
    for (uint64_t i = 0; i < 4000; ++i) {
        const uint64_t at = (i * 2654435761U) % 8000 * 4096;
        ASSERT_EQ(local_[i * 4096 + i], patternAt(at + i)) << i;
    }
}

TEST_P(TwoProcessTest, BobAnswersWhomHeWasNeverToldOf) {
    agent_->sendNotification("bob", "hello");
    EXPECT_EQ(ask("notification"), "alice:hello");
    EXPECT_EQ(ask("answer"), "sent");
    ASSERT_TRUE(agent_->waitNotifications(seconds(5)));
    EXPECT_EQ(agent_->takeNotifications().at(0).message, "from bob");
}

TEST_P(TwoProcessTest, DeregisteredThereIsRefusedHere) {
    TransferHandle write = prepare(OpType::WRITE, 0, 1 << 20);
    agent_->postTransfer(write);
    ASSERT_EQ(agent_->waitTransfer(write, seconds(10)), XferState::DONE);
    EXPECT_EQ(ask("deregister"), "done");
    const std::string before = ask("memory");
    local_[5] = static_cast<char>(local_[5] + 1);
    EXPECT_EQ(thrown([&] {
                  agent_->postTransfer(write);
                  agent_->waitTransfer(write, seconds(10));
              }),
              ErrorCode::NOT_FOUND)
        << message();
    EXPECT_EQ(before, ask("memory"));
}

TEST_P(TwoProcessTest, KilledPeerFailsSoonAndItsNameCanComeBack) {
    TransferHandle write = prepare(OpType::WRITE, 0, kSize);
    agent_->postTransfer(write);
    ASSERT_EQ(agent_->waitTransfer(write, seconds(10)), XferState::DONE);
    killed_ = true;
    kill(child_, SIGKILL);
    const auto begin = Clock::now();
    ErrorCode code = ErrorCode::OK;
    while (code == ErrorCode::OK && Clock::now() - begin < seconds(10)) {
        code = thrown([&] {
            agent_->postTransfer(write);
            agent_->waitTransfer(write, seconds(10));
        });
    }
    EXPECT_EQ(code, ErrorCode::REMOTE_DISCONNECT) << message();
    EXPECT_LT(Clock::now() - begin, milliseconds(2500));
    EXPECT_NE(message().find("bob"), std::string::npos) << message();
    code = ErrorCode::OK;  // the loss of the session may be seen a moment after that of the data
    while (code == ErrorCode::OK && Clock::now() - begin < seconds(10)) {
        code = thrown([&] { agent_->sendNotification("bob", "x"); });
    }
    EXPECT_EQ(code, ErrorCode::REMOTE_DISCONNECT) << message();
    agent_->removePeer("bob");
    EXPECT_EQ(agent_->addPeer(metadata_), "bob");
}

TEST_P(TwoProcessTest, StoppedPeerEndsWithinThePeerTimeout) {
    TransferHandle write = prepare(OpType::WRITE, 0, kSize);
    agent_->postTransfer(write, "before");
    ASSERT_EQ(agent_->waitTransfer(write, seconds(10)), XferState::DONE);
    kill(child_, SIGSTOP);
    int state = 0;  // until its last thread has stopped; one that still runs may answer
    ASSERT_EQ(waitpid(child_, &state, WUNTRACED), child_);
    ASSERT_TRUE(WIFSTOPPED(state));
    const auto begin = Clock::now();
    const ErrorCode code = thrown([&] {
        agent_->postTransfer(write, "while stopped");
        agent_->waitTransfer(write, seconds(20));
    });
    EXPECT_TRUE(code == ErrorCode::REMOTE_DISCONNECT || code == ErrorCode::TIMEOUT) << message();
    EXPECT_LT(Clock::now() - begin, seconds(8));
    kill(child_, SIGCONT);
}

TEST_P(TwoProcessTest, AgentEndsWithTransfersUnderWay) {
    std::vector<TransferHandle> handles;
    for (int i = 0; i < 4; ++i) {
        handles.push_back(prepare(OpType::READ, static_cast<uint64_t>(i) << 20, 8 << 20));
        agent_->postTransfer(handles.back());
    }
    const auto begin = Clock::now();
    agent_.reset();
    EXPECT_LT(Clock::now() - begin, seconds(3));
}

INSTANTIATE_TEST_SUITE_P(Lanes,
                         TwoProcessTest,
                         testing::Values("host", "stream"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nixl
