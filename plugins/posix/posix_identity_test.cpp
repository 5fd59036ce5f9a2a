// Which file a transfer moves: the one that was registered, whatever became of its number or its
// name meanwhile, or none.
#include <fstream>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

using testing::HasSubstr;

constexpr size_t kSize = 32 << 20;  // longer in progress than a close takes

class PosixIdentityTest : public testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        auto made = PosixBackend::create(parametersWith({{GetParam(), "true"}}), services_);
        ASSERT_TRUE(made.ok()) << made.status().message();
        backend_ = std::move(made).value();
        if (const std::string passed_over = services_.text(LogLevel::WARN); !passed_over.empty()) {
            GTEST_SKIP() << passed_over;
        }
        memory_ = static_cast<char*>(
            mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        std::fill_n(memory_, kSize, 'm');
    }
    void TearDown() override {
        if (memory_ != nullptr) {
            munmap(memory_, kSize);
        }
    }

    int openFile(const std::string& name, int flags = 0) {
        return ::open((folder_ / name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0600);
    }
    std::unique_ptr<BackendMemory> enter(uint64_t device, const std::string& metadata = {}) {
        auto file = backend_->registerMemory({MemType::FILE, 0, 0, device, metadata});
        EXPECT_TRUE(file.ok()) << file.status().message();
        return file.ok() ? std::move(file).value() : nullptr;
    }
    std::unique_ptr<BackendTransfer> prepare(BackendMemory* file, size_t size) {
        plans_.push_back(std::make_unique<TestPlan>(OpType::WRITE));
        plans_.back()->add(memory_, size, file, 0);
        return backend_->prepareTransfer(plans_.back()->get()).value();
    }
    // The bytes of a file, or "" and a mistake counted where there are others than the memory's.
    size_t written(const std::string& name) {
        std::ifstream file(folder_ / name);
        const std::string bytes((std::istreambuf_iterator<char>(file)), {});
        EXPECT_EQ(bytes.find_first_not_of('m'), std::string::npos);
        return bytes.size();
    }

    TestServices services_;
    std::unique_ptr<Backend> backend_;
    std::vector<std::unique_ptr<TestPlan>> plans_;
    TempFolder folder_;
    char* memory_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Engines,
                         PosixIdentityTest,
                         testing::Values("use_aio", "use_uring", "use_posix_aio", "use_threads"),
                         [](const auto& info) { return std::string(info.param + 4); });

TEST_P(PosixIdentityTest, ClosedAfterPostAndUsedAgainForAnotherFile) {
    for (const int flags : {0, O_DIRECT}) {
        for (const size_t size : {kSize, kSize - 100, size_t{4096}}) {  // - 100: a buffered tail
            std::filesystem::remove(folder_ / "first");
            const int fd = openFile("first", flags);
            ASSERT_GE(fd, 0);
            auto file = enter(static_cast<uint64_t>(fd));
            auto transfer = prepare(file.get(), size);
            auto end = std::make_shared<TestCompletion>();
            ASSERT_TRUE(transfer->post(end, "", false).ok());
            close(fd);
            ASSERT_EQ(openFile("second", flags), fd) << "the number was not free";
            EXPECT_EQ(end->wait(), XferState::DONE) << end->status.message();
            EXPECT_EQ(written("first"), size) << flags;
            EXPECT_EQ(written("second"), 0U) << "another file was written to";
            // A post of what is registered no longer is refused, until the number is entered anew.
            const Status late = transfer->post(std::make_shared<TestCompletion>(), "", false);
            EXPECT_THAT(late.message(), HasSubstr("now belongs to another file"));
            auto anew = enter(static_cast<uint64_t>(fd));
            auto second = prepare(anew.get(), 4096);
            auto second_end = std::make_shared<TestCompletion>();
            ASSERT_TRUE(second->post(second_end, "", false).ok());
            EXPECT_EQ(second_end->wait(), XferState::DONE);
            EXPECT_EQ(written("second"), 4096U);
            std::filesystem::remove(folder_ / "second");
            close(fd);
        }
    }
}

TEST_P(PosixIdentityTest, NothingIsHeldAfterTheEnd) {
    const int fd = openFile("f", O_DIRECT);
    auto file = enter(static_cast<uint64_t>(fd));
    auto transfer = prepare(file.get(), 65536);
    const auto open_files = [] {
        const std::filesystem::directory_iterator all("/proc/self/fd");
        return std::distance(begin(all), end(all));
    };
    const auto before = open_files();
    for (int i = 0; i < 3; ++i) {
        auto end = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer->post(end, "", false).ok());
        ASSERT_EQ(end->wait(), XferState::DONE);
        EXPECT_EQ(open_files(), before);
    }
    close(fd);
}

// Many descriptors in one transfer, no room to hold them: still no other file is written to.
TEST_P(PosixIdentityTest, WithoutRoomForHolding) {
    constexpr size_t kFiles = 60;
    std::vector<int> fds;
    std::vector<std::unique_ptr<BackendMemory>> files;
    TestPlan plan(OpType::WRITE);
    for (size_t i = 0; i < kFiles; ++i) {
        fds.push_back(openFile(std::to_string(i), O_DIRECT));
        ASSERT_GE(fds.back(), 0);
        files.push_back(enter(static_cast<uint64_t>(fds.back())));
        plan.add(memory_ + i * 4096, 4096, files.back().get(), 0);
    }
    auto transfer = backend_->prepareTransfer(plan.get()).value();
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    rlimit tight = before;
    const int lowest = dup(0);
    close(lowest);
    tight.rlim_cur = static_cast<rlim_t>(lowest) + 40;
    setrlimit(RLIMIT_NOFILE, &tight);
    auto end = std::make_shared<TestCompletion>();
    const Status posted = transfer->post(end, "", false);
    const XferState state = posted.ok() ? end->wait(30) : XferState::FAILED;
    setrlimit(RLIMIT_NOFILE, &before);
    EXPECT_EQ(state, XferState::DONE) << posted.message() << end->status.message();
    for (size_t i = 0; i < kFiles; ++i) {
        EXPECT_EQ(written(std::to_string(i)), 4096U);
    }
    // The same with every other number closed and used again after the post: those bytes are in
    // their own file or named as failed.
    setrlimit(RLIMIT_NOFILE, &tight);
    auto again = std::make_shared<TestCompletion>();
    const Status reposted = transfer->post(again, "", false);
    for (size_t i = 0; i < kFiles; i += 2) {
        close(fds[i]);
        fds[i] = openFile("other" + std::to_string(i));
    }
    if (reposted.ok()) {
        again->wait(30);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    for (size_t i = 0; i < kFiles; ++i) {
        if (i % 2 == 0) {
            EXPECT_EQ(written("other" + std::to_string(i)), 0U);
        }
        close(fds[i]);
    }
    EXPECT_TRUE(reposted.ok()) << reposted.message();
    for (const SegmentFailure& failure : again->failures) {
        EXPECT_TRUE(failure.systemErrno == EBADF || failure.systemErrno == ESTALE)
            << failure.systemErrno;
    }
}

TEST_P(PosixIdentityTest, PathThatWasReplacedOrRemoved) {
    for (const std::string flags : {"rw,create:", "rw,create,direct:"}) {
        for (const size_t size : {size_t{4096}, size_t{1} << 20}) {
            for (const bool replaced : {true, false}) {
                const std::string path = folder_ / "f";
                std::filesystem::remove(path);
                auto file = enter(1, flags + path);
                auto transfer = prepare(file.get(), size);
                auto first = std::make_shared<TestCompletion>();
                ASSERT_TRUE(transfer->post(first, "", false).ok());
                ASSERT_EQ(first->wait(), XferState::DONE) << first->status.message();
                if (replaced) {
                    std::ofstream(folder_ / "new") << "new";
                    std::filesystem::rename(folder_ / "new", path);
                } else {
                    std::filesystem::remove(path);
                }
                auto second = std::make_shared<TestCompletion>();
                ASSERT_TRUE(transfer->post(second, "", false).ok());
                ASSERT_EQ(second->wait(), XferState::FAILED) << flags << size << replaced;
                EXPECT_EQ(second->status.systemErrno(), replaced ? ESTALE : ENOENT);
                EXPECT_THAT(second->status.message(), HasSubstr("since it was registered"));
                ASSERT_EQ(second->failures.size(), 1U);
                EXPECT_EQ(second->failures[0].size, size);
                EXPECT_EQ(second->failures[0].done, 0U);
                if (replaced) {
                    EXPECT_EQ(std::filesystem::file_size(path), 3U);
                } else {
                    EXPECT_FALSE(std::filesystem::exists(path));
                }
                auto anew = enter(1, flags + path);
                auto third = std::make_shared<TestCompletion>();
                auto of_new = prepare(anew.get(), size);
                ASSERT_TRUE(of_new->post(third, "", false).ok());
                EXPECT_EQ(third->wait(), XferState::DONE);
                EXPECT_EQ(written("f"), size);
            }
        }
    }
}

}  // namespace
}  // namespace nixl::posix
