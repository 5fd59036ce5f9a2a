// The host lane's shared mappings between two real processes: what is mapped, what is attached to,
// and everything the other side can do to its memory. The second process is a fork made before
// any agent; messages are packets of a socket pair.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nixl/agent.h"
#include "nixl/plugin.h"
#include "nixl/shared_buffer.h"

#include "backend/plugins.h"
#include "testing/until.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;
using testkit::eventually;

constexpr size_t kShared = 32 << 20;
constexpr size_t kPrivate = 4 << 20;
constexpr size_t kUnsealed = 1 << 20;

AgentConfig withLanes(const std::string& lanes) {
    EXPECT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
    AgentConfig config;
    config.backends = {"UCX"};
    config.lanes = lanes;
    config.peerTimeout = seconds(60);
    return config;
}

std::string receiveText(int fd) {
    std::string text(64 << 10, '\0');
    const ssize_t got = recv(fd, text.data(), text.size(), 0);
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
}

void sendText(int fd, const std::string& text) {
    ASSERT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

bool allOf(const void* memory, size_t size, char value) {
    const auto* bytes = static_cast<const char*>(memory);
    return bytes[0] == value && std::memcmp(bytes, bytes + 1, size - 1) == 0;
}

// How many areas of this process lie in memory files named so.
size_t mappedFiles(const std::string& name) {
    std::ifstream maps("/proc/self/maps");
    size_t count = 0;
    for (std::string line; std::getline(maps, line);) {
        count += line.find("memfd:" + name + " ") != std::string::npos ? 1 : 0;
    }
    return count;
}

// The other process: an agent "bob" with memory of three kinds, that does what it is told.
class Bob {
  public:
    explicit Bob(int fd) : fd_(fd), agent_("bob", withLanes("host,stream")) {
        unsealedFile_ = memfd_create("unsealed", MFD_CLOEXEC);
        EXPECT_EQ(posix_fallocate(unsealedFile_, 0, kUnsealed), 0);
        unsealed_ = mmap(nullptr, kUnsealed, PROT_READ | PROT_WRITE, MAP_SHARED, unsealedFile_, 0);
        std::memset(shared_.data(), 'b', kShared);
        // Two regions in one file.
        const size_t half = kShared / 2;
        agent_.registerMemory(RegistrationList{{shared_.data(), half}}, {});
        agent_.registerMemory(RegistrationList{{secondHalf(), half}}, {});
        agent_.registerMemory(RegistrationList{{private_.data(), kPrivate}}, {});
        agent_.registerMemory(RegistrationList{{unsealed_, kUnsealed}}, {});
        sendText(fd_, std::to_string(reinterpret_cast<uint64_t>(shared_.data())));
        sendText(fd_, std::to_string(reinterpret_cast<uint64_t>(private_.data())));
        sendText(fd_, std::to_string(reinterpret_cast<uint64_t>(unsealed_)));
        sendText(fd_, agent_.metadata());
    }

    void serve() {
        for (std::string command = receiveText(fd_); !command.empty() && command != "end";
             command = receiveText(fd_)) {
            sendText(fd_, answer(command));
        }
    }

  private:
    std::string answer(const std::string& command) {
        if (command == "deregister") {
            agent_.deregisterMemory(RegistrationList{{shared_.data(), kShared / 2}}, {});
            agent_.deregisterMemory(RegistrationList{{secondHalf(), kShared / 2}}, {});
            std::memset(shared_.data(), 'z', kShared);
            std::this_thread::sleep_for(milliseconds(300));  // sleeps: for a byte that came late
            return allOf(shared_.data(), kShared, 'z') ? "clean" : "written to";
        }
        if (command == "truncate") {
            return ftruncate(unsealedFile_, 0) == 0 ? "truncated" : "refused";
        }
        if (command == "fork") {
            const pid_t child = fork();
            if (child == 0) {
                pause();
                _exit(0);
            }
            return std::to_string(child);
        }
        return allOf(shared_.data(), kShared, command[0]) ? "yes" : "no";
    }

    void* secondHalf() const { return static_cast<char*>(shared_.data()) + kShared / 2; }

    const int fd_;
    SharedBuffer shared_ = alloc(kShared);
    std::vector<char> private_ = std::vector<char>(kPrivate, 'p');
    int unsealedFile_ = -1;
    void* unsealed_ = nullptr;
    Agent agent_;
};

class SharedMappingTest : public testing::Test {
  protected:
    void startBob(bool attachable = true) {
        int ends[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        child_ = fork();
        if (child_ == 0) {
            close(ends[0]);
            prctl(PR_SET_DUMPABLE, attachable ? 1 : 0);
            try {
                Bob(ends[1]).serve();
            } catch (const std::exception& error) {
                std::fprintf(stderr, "bob: %s\n", error.what());
                _exit(1);
            }
            _exit(0);
        }
        close(ends[1]);
        fd_ = ends[0];
        shared_ = std::stoull(receiveText(fd_));
        private_ = std::stoull(receiveText(fd_));
        unsealed_ = std::stoull(receiveText(fd_));
        metadata_ = receiveText(fd_);
    }
    void startAlice(const std::string& lanes = "host") {
        agent_ = std::make_unique<Agent>("alice", withLanes(lanes));
        agent_->registerMemory(RegistrationList{{local_.data(), local_.size()}}, {});
        ASSERT_EQ(agent_->addPeer(metadata_), "bob");
        agent_->connect("bob");
    }
    void TearDown() override {
        agent_.reset();
        if (child_ > 0) {
            close(fd_);
            int status = 0;
            waitpid(child_, &status, 0);
            EXPECT_TRUE(killed_ || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << status;
        }
    }
    std::string ask(const std::string& command) {
        sendText(fd_, command);
        return receiveText(fd_);
    }
    TransferHandle prepare(OpType op, uint64_t remote, uint64_t size) {
        return agent_->prepareTransfer(op, DescriptorList{{local_.data(), size}},
                                       DescriptorList{{remote, size}}, "bob");
    }
    // Prepares, and waits until the peer has answered what can be mapped.
    TransferHandle resolved(OpType op, uint64_t remote, uint64_t size) {
        TransferHandle handle = prepare(op, remote, size);
        eventually([&] {
            const std::string reason = agent_->explainTransfer(handle.id()).reason;
            return reason.find("asked yet") == std::string::npos;
        });
        return handle;
    }
    ErrorCode run(TransferHandle& handle) {
        try {
            agent_->postTransfer(handle);
            return agent_->waitTransfer(handle, seconds(20)) == XferState::DONE
                       ? ErrorCode::OK
                       : ErrorCode::UNKNOWN;
        } catch (const Error& error) {
            message_ = error.what();
            errno_ = error.systemErrno();
            return error.code();
        }
    }
    std::string device(const TransferHandle& handle) {
        return agent_->explainTransfer(handle.id()).device;
    }

    pid_t child_ = -1;
    bool killed_ = false;
    int fd_ = -1;
    uint64_t shared_ = 0;
    uint64_t private_ = 0;
    uint64_t unsealed_ = 0;
    int errno_ = 0;
    std::string message_;
    std::string metadata_;
    std::vector<char> local_ = std::vector<char>(kShared, 'a');
    std::unique_ptr<Agent> agent_;
};

TEST_F(SharedMappingTest, CopiesThroughOneMappingOfTheFile) {
    startBob();
    startAlice();
    TransferHandle write = resolved(OpType::WRITE, shared_, kShared);
    EXPECT_EQ(device(write), "shared mapping") << agent_->explainTransfer(write.id()).reason;
    EXPECT_EQ(mappedFiles("nixl"), 1U) << "both regions lie in one file";
    ASSERT_EQ(run(write), ErrorCode::OK) << message_;
    EXPECT_EQ(ask("a"), "yes");
    for (const uint64_t size : {1UL, 63UL, 4096UL, 300'001UL}) {
        std::memset(local_.data(), 'c', size);
        TransferHandle some = resolved(OpType::WRITE, shared_ + 77, size);
        ASSERT_EQ(run(some), ErrorCode::OK) << message_;
        std::memset(local_.data(), 'x', kShared);
        TransferHandle back = resolved(OpType::READ, shared_, size + 100);
        ASSERT_EQ(run(back), ErrorCode::OK) << message_;
        EXPECT_TRUE(allOf(local_.data(), 77, 'a')) << size;
        EXPECT_TRUE(allOf(local_.data() + 77, size, 'c')) << size;
        EXPECT_EQ(local_[77 + size], size < 300'001 ? local_[77 + size] : 'a');
        std::memset(local_.data(), 'a', kShared);
        ASSERT_EQ(run(write), ErrorCode::OK);
    }
    EXPECT_EQ(ask("a"), "yes");
}

TEST_F(SharedMappingTest, MixedTransfersTellWhatIsMapped) {
    startBob();
    startAlice();
    DescriptorList mine(MemType::DRAM);
    DescriptorList theirs(MemType::DRAM);
    constexpr uint64_t kPiece = 5000;
    for (uint64_t i = 0; i < 600; ++i) {  // shared and private in turns
        mine.append(reinterpret_cast<uint64_t>(local_.data()) + i * 6000, kPiece);
        theirs.append((i % 2 == 0 ? shared_ : private_) + i * 6000, kPiece);
    }
    TransferHandle read = agent_->prepareTransfer(OpType::READ, mine, theirs, "bob");
    eventually([&] { return device(read) == "shared mapping and cross-memory attach"; });
    const TransferExplanation how = agent_->explainTransfer(read.id());
    EXPECT_EQ(how.device, "shared mapping and cross-memory attach");
    EXPECT_NE(how.reason.find("1 of 2 regions are mapped: memory is not shareable: use nixl.alloc"),
              std::string::npos)
        << how.reason;
    ASSERT_EQ(run(read), ErrorCode::OK) << message_;
    for (uint64_t i = 0; i < 600; ++i) {
        ASSERT_TRUE(allOf(local_.data() + i * 6000, kPiece, i % 2 == 0 ? 'b' : 'p')) << i;
        ASSERT_TRUE(allOf(local_.data() + i * 6000 + kPiece, 1000, 'a')) << i;
    }
}

TEST_F(SharedMappingTest, FileThatItsOwnerTruncatesIsNotMapped) {
    startBob();
    startAlice();
    TransferHandle write = resolved(OpType::WRITE, unsealed_, kUnsealed);
    EXPECT_EQ(device(write), "cross-memory attach");
    EXPECT_NE(agent_->explainTransfer(write.id()).reason.find("F_SEAL_SHRINK"), std::string::npos);
    EXPECT_EQ(mappedFiles("unsealed"), 0U);
    ASSERT_EQ(run(write), ErrorCode::OK) << message_;
    ASSERT_EQ(ask("truncate"), "truncated");
    EXPECT_EQ(run(write), ErrorCode::BACKEND) << message_;
    EXPECT_EQ(errno_, EFAULT) << message_;
    EXPECT_NE(message_.find("bob"), std::string::npos) << message_;
}

TEST_F(SharedMappingTest, DeregisteredInTheMiddleIsLeftAloneAndLetGo) {
    startBob();
    startAlice();
    TransferHandle write = resolved(OpType::WRITE, shared_, kShared);
    ASSERT_EQ(device(write), "shared mapping");
    ErrorCode code = ErrorCode::OK;
    std::atomic<int> rounds{0};
    std::thread writer([&] {
        const auto until = Clock::now() + seconds(60);
        while (code == ErrorCode::OK && Clock::now() < until) {
            code = run(write);
            ++rounds;
        }
    });
    EXPECT_TRUE(eventually([&] { return rounds > 2; }));
    EXPECT_EQ(ask("deregister"), "clean");
    writer.join();
    EXPECT_EQ(code, ErrorCode::NOT_FOUND) << message_;
    eventually([&] { return mappedFiles("nixl") == 0; });
    EXPECT_EQ(mappedFiles("nixl"), 0U) << "a prepared transfer keeps the peer's memory alive";
    EXPECT_EQ(run(write), ErrorCode::NOT_FOUND) << message_;
}

TEST_F(SharedMappingTest, KilledInTheMiddleFails) {
    startBob();
    startAlice();
    TransferHandle write = resolved(OpType::WRITE, shared_, kShared);
    TransferHandle small = resolved(OpType::WRITE, shared_, 64);
    ASSERT_EQ(device(write), "shared mapping");
    // A child of the killed process keeps the socket open, and the memory.
    const pid_t grandchild = std::stoi(ask("fork"));
    ErrorCode code = ErrorCode::OK;
    std::atomic<int> rounds{0};
    Clock::time_point ended;
    std::thread writer([&] {
        const auto until = Clock::now() + seconds(60);
        while (code == ErrorCode::OK && Clock::now() < until) {
            code = run(write);
            ++rounds;
        }
        ended = Clock::now();
    });
    EXPECT_TRUE(eventually([&] { return rounds > 2; }));
    killed_ = true;
    const auto killed = Clock::now();
    kill(child_, SIGKILL);
    writer.join();
    EXPECT_EQ(code, ErrorCode::REMOTE_DISCONNECT) << message_;
    EXPECT_LT(ended - killed, seconds(15));  // by the socket's end, not by the peer timeout
    EXPECT_EQ(run(small), ErrorCode::REMOTE_DISCONNECT) << message_;
    kill(grandchild, SIGKILL);
}

TEST_F(SharedMappingTest, ForkedChildHasNoneOfIt) {
    startBob();
    startAlice();
    TransferHandle write = resolved(OpType::WRITE, shared_, kShared);
    ASSERT_EQ(run(write), ErrorCode::OK) << message_;
    ASSERT_EQ(mappedFiles("nixl"), 1U);
    const pid_t child = fork();
    if (child == 0) {
        _exit(static_cast<int>(mappedFiles("nixl")));
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 0) << "the child keeps the peer's memory alive";
    std::memset(local_.data(), 'd', kShared);
    ASSERT_EQ(run(write), ErrorCode::OK) << message_;
    EXPECT_EQ(ask("d"), "yes");
}

bool dropPtrace() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2] = {};
    if (syscall(SYS_capget, &header, data) != 0) {
        return false;
    }
    data[0].effective &= ~(1U << CAP_SYS_PTRACE);
    data[0].permitted &= ~(1U << CAP_SYS_PTRACE);
    return syscall(SYS_capset, &header, data) == 0;
}

TEST_F(SharedMappingTest, WorksWhereAttachingIsForbidden) {
    startBob(/*attachable=*/false);
    // In a process of its own, since the right does not come back.
    const pid_t alice = fork();
    if (alice == 0) {
        if (!dropPtrace()) {
            _exit(3);
        }
        startAlice("host,stream");
        TransferHandle write = resolved(OpType::WRITE, shared_, kShared);
        TransferHandle other = resolved(OpType::WRITE, private_, kPrivate);
        const TransferExplanation how = agent_->explainTransfer(write.id());
        const TransferExplanation otherwise = agent_->explainTransfer(other.id());
        EXPECT_EQ(how.device, "shared mapping") << how.reason;
        EXPECT_NE(how.reason.find("refused"), std::string::npos) << how.reason;
        EXPECT_EQ(otherwise.lane, "stream") << otherwise.reason;
        EXPECT_NE(otherwise.reason.find("use nixl.alloc"), std::string::npos) << otherwise.reason;
        EXPECT_EQ(run(write), ErrorCode::OK) << message_;
        EXPECT_EQ(run(other), ErrorCode::OK) << message_;
        EXPECT_EQ(ask("a"), "yes");
        _exit(HasFailure() ? 1 : 0);
    }
    int status = 0;
    waitpid(alice, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == 3) {
        GTEST_SKIP() << "the capability to attach cannot be given up here";
    }
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(SharedMappingTest, WorksAcrossPidNamespaces) {
    startBob();
    const pid_t outer = fork();
    if (outer == 0) {
        if (unshare(CLONE_NEWPID) != 0) {
            _exit(3);
        }
        const pid_t alice = fork();
        if (alice == 0) {
            startAlice("host");
            TransferHandle write = prepare(OpType::WRITE, shared_, kShared);
            EXPECT_EQ(run(write), ErrorCode::OK) << message_;
            const TransferExplanation how = agent_->explainTransfer(write.id());
            EXPECT_EQ(how.device, "shared mapping") << how.reason;
            EXPECT_NE(how.reason.find("another PID namespace"), std::string::npos) << how.reason;
            EXPECT_EQ(ask("a"), "yes");
            _exit(HasFailure() ? 1 : 0);
        }
        int status = 0;
        waitpid(alice, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    int status = 0;
    waitpid(outer, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == 3) {
        GTEST_SKIP() << "no PID namespace can be made here (needs root)";
    }
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(SharedMappingTest, FirstPostWaitsForTheMappingWhereNothingElseIsAllowed) {
    startBob(/*attachable=*/false);
    const pid_t alice = fork();
    if (alice == 0) {
        if (!dropPtrace()) {
            _exit(3);
        }
        startAlice("host");
        TransferHandle write = prepare(OpType::WRITE, shared_, kShared);
        EXPECT_EQ(run(write), ErrorCode::OK) << message_;
        EXPECT_EQ(ask("a"), "yes");
        TransferHandle other = prepare(OpType::WRITE, private_, kPrivate);
        EXPECT_EQ(run(other), ErrorCode::NOT_SUPPORTED);
        EXPECT_NE(message_.find("use nixl.alloc"), std::string::npos) << message_;
        _exit(HasFailure() ? 1 : 0);
    }
    int status = 0;
    waitpid(alice, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == 3) {
        GTEST_SKIP() << "the capability to attach cannot be given up here";
    }
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace nixl
