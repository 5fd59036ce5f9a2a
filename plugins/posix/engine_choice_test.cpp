// Which engine is taken: as named, else by order; what the system forbids is passed over.
#include "engine_choice.h"

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inline_queue.h"
#include "posix_test_support.h"

namespace nixl::posix {
namespace {

using testing::HasSubstr;

// Forbids the calls to this thread and those it starts, as a container's profile does.
bool forbid(const std::vector<unsigned>& calls) {
    std::vector<sock_filter> program;
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
    for (const unsigned call : calls) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
        program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

struct Made {
    std::string engine;
    std::string info;
    std::string warning;
    std::string error;
};

Made make(const std::map<std::string, std::string>& parameters) {
    TestServices services;
    auto backend = PosixBackend::create(parametersWith(parameters), services);
    if (!backend.ok()) {
        return {"", "", "", backend.status().message()};
    }
    auto* posix = static_cast<PosixBackend*>(backend.value().get());
    return {posix->engineName(), services.text(LogLevel::INFO), services.text(LogLevel::WARN), ""};
}

Made makeForbidden(const std::vector<unsigned>& calls,
                   const std::map<std::string, std::string>& parameters) {
    Made made;
    std::thread([&] {
        if (forbid(calls)) {
            made = make(parameters);
        } else {
            made.error = "SKIP";
        }
    }).join();
    return made;
}

TEST(EngineChoiceTest, NamedEngine) {
    EXPECT_EQ(make({{"use_threads", "true"}}).engine, "threads");
    const Made made = make({{"use_posix_aio", "true"}});
    if (!made.warning.empty()) {
        GTEST_SKIP() << made.warning;
    }
    EXPECT_EQ(made.engine, "POSIX AIO");
}

TEST(EngineChoiceTest, TwoNamedEnginesAreAnErrorThatNamesBoth) {
    const Made made = make({{"use_uring", "true"}, {"use_posix_aio", "true"}});
    EXPECT_THAT(made.error, HasSubstr("use_uring and use_posix_aio are both true"));
    EXPECT_EQ(make({{"use_uring", "false"}, {"use_posix_aio", "true"}}).error, "");
}

TEST(EngineChoiceTest, LinuxAioIsTheFirst) {
    const Made made = make({});
    if (made.engine != "Linux AIO") {
        GTEST_SKIP() << "the system does not permit it: " << made.info;
    }
    EXPECT_EQ(made.info, "");
}

TEST(EngineChoiceTest, FallsThroughWithOneLine) {
    const Made made = makeForbidden({SYS_io_setup, SYS_io_uring_setup}, {});
    if (made.error == "SKIP") {
        GTEST_SKIP() << "seccomp is not permitted here";
    }
    // The thread sanitizer leaves out POSIX AIO.
    const bool posix_aio = made.info.find("POSIX AIO cannot") == std::string::npos;
    EXPECT_EQ(made.engine, posix_aio ? "POSIX AIO" : "threads");
    EXPECT_THAT(made.info,
                HasSubstr("Linux AIO cannot be used: io_setup: Operation not permitted"));
    EXPECT_THAT(made.info, HasSubstr("io_uring cannot be used: io_uring_setup: Operation not"));
    EXPECT_THAT(made.info, HasSubstr("using " + made.engine));
    EXPECT_EQ(std::count(made.info.begin(), made.info.end(), '\n'), 1);
    EXPECT_EQ(made.warning, "");
}

TEST(EngineChoiceTest, NamedButForbiddenIsAWarning) {
    const Made made = makeForbidden({SYS_io_uring_setup}, {{"use_uring", "true"}});
    if (made.error == "SKIP") {
        GTEST_SKIP() << "seccomp is not permitted here";
    }
    EXPECT_EQ(made.engine, "Linux AIO");
    EXPECT_THAT(made.warning, HasSubstr("io_uring cannot be used"));
}

TEST(EngineChoiceTest, SmallTransfersOfUringGoByAioWhereItIsPermitted) {
    const int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const auto queue = openSmallQueue(8, event);
    if (queue == nullptr) {
        GTEST_SKIP() << "the system permits neither Linux AIO nor io_uring";
    }
    std::unique_ptr<KernelQueue> ring;
    bool forbidden = false;
    std::thread([&] {
        forbidden = forbid({SYS_io_setup});
        ring = openSmallQueue(8, event);
    }).join();
    if (!forbidden) {
        GTEST_SKIP() << "seccomp is not permitted here";
    }
    EXPECT_EQ(queue->waitFd(), event);
    const auto other = openUringQueue(8, event);
    EXPECT_EQ(ring == nullptr, other == nullptr);
    if (ring != nullptr) {
        EXPECT_NE(ring->waitFd(), event);
    }
    close(event);
}

TEST(EngineChoiceTest, MergeSizeMustFitPages) {
    EXPECT_THAT(make({{"merge_size", "5000"}}).error, HasSubstr("merge_size 5000"));
}

}  // namespace
}  // namespace nixl::posix
