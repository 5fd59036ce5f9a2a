// Failures of the POSIX backend: on the right bytes, with the right errno, and nobody else's.
#include <array>
#include <fstream>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

using testing::HasSubstr;

class PosixFailureTest : public testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        auto made = PosixBackend::create(parametersWith({{GetParam(), "true"}}), services_);
        ASSERT_TRUE(made.ok()) << made.status().message();
        backend_ = std::move(made).value();
        if (const std::string passed_over = services_.text(LogLevel::WARN); !passed_over.empty()) {
            GTEST_SKIP() << passed_over;
        }
    }

    std::unique_ptr<BackendMemory> registerSpec(const std::string& spec) {
        auto file = backend_->registerMemory({MemType::FILE, 0, 1 << 30, 1, spec});
        EXPECT_TRUE(file.ok()) << file.status().message();
        return file.ok() ? std::move(file).value() : nullptr;
    }

    std::shared_ptr<TestCompletion> post(TestPlan& plan) {
        transfers_.push_back(backend_->prepareTransfer(plan.get()).value());
        auto completion = std::make_shared<TestCompletion>();
        const Status posted = transfers_.back()->post(completion, "", false);
        EXPECT_TRUE(posted.ok()) << posted.message();
        return completion;
    }

    void fill(const std::string& path, size_t size) {
        std::ofstream(path) << std::string(size, 'x');
    }

    TestServices services_;
    std::unique_ptr<Backend> backend_;
    std::vector<std::unique_ptr<BackendTransfer>> transfers_;
    TempFolder folder_;
    alignas(4096) std::array<char, 65536> memory_{};
};

INSTANTIATE_TEST_SUITE_P(Engines,
                         PosixFailureTest,
                         testing::Values("use_aio", "use_uring", "use_posix_aio", "use_threads"),
                         [](const auto& info) { return std::string(info.param + 4); });

TEST_P(PosixFailureTest, ShortReadNamesTheBytes) {
    for (const std::string flags : {"ro:", "ro,direct:"}) {
        const std::string path = folder_ / "f";
        fill(path, 4096 + 512);
        auto file = registerSpec(flags + path);
        TestPlan plan(OpType::READ);
        plan.add(memory_.data(), 8192, file.get(), 0);
        auto end = post(plan);
        ASSERT_EQ(end->wait(), XferState::FAILED);
        ASSERT_EQ(end->failures.size(), 1U);
        EXPECT_EQ(end->failures[0].planOffset, 0U);
        EXPECT_EQ(end->failures[0].size, 8192U);
        EXPECT_EQ(end->failures[0].done, 4608U);
        EXPECT_EQ(end->failures[0].systemErrno, 0);
        EXPECT_EQ(end->status.message(),
                  "POSIX: read " + path + " at 0: 4608 of 8192 bytes, end of file");
        EXPECT_EQ(std::string(memory_.data(), 4608), std::string(4608, 'x'));
        EXPECT_EQ(memory_[4608], '\0');
        memory_.fill('\0');
    }
}

TEST_P(PosixFailureTest, ReadOnlyDescriptorAndItsNeighbour) {
    fill(folder_ / "bad", 4096);
    auto bad = registerSpec("ro:" + (folder_ / "bad"));
    auto good = registerSpec("rw,create:" + (folder_ / "good"));
    TestPlan failing(OpType::WRITE);
    failing.add(memory_.data(), 4096, bad.get(), 0);
    TestPlan fine(OpType::WRITE);
    fine.add(memory_.data(), 4096, good.get(), 0);
    auto bad_end = post(failing);
    auto good_end = post(fine);
    EXPECT_EQ(bad_end->wait(), XferState::FAILED);
    EXPECT_EQ(good_end->wait(), XferState::DONE);
    EXPECT_EQ(bad_end->status.systemErrno(), EBADF);
    EXPECT_THAT(bad_end->status.message(), HasSubstr("0 of 4096 bytes, Bad file descriptor"));
}

TEST_P(PosixFailureTest, OneOfAHundredFilesIsOnAFullDevice) {
    if (access("/dev/full", W_OK) != 0) {
        GTEST_SKIP() << "no /dev/full here";
    }
    std::vector<std::unique_ptr<BackendMemory>> files;
    TestPlan plan(OpType::WRITE);
    for (size_t i = 0; i < 100; ++i) {
        files.push_back(
            registerSpec(i == 37 ? "rw:/dev/full" : "rw,create:" + (folder_ / std::to_string(i))));
        plan.add(memory_.data(), 4096, files.back().get(), 0);
    }
    auto end = post(plan);
    ASSERT_EQ(end->wait(), XferState::FAILED);
    ASSERT_EQ(end->failures.size(), 1U);
    EXPECT_EQ(end->failures[0].planOffset, 37U * 4096);
    EXPECT_EQ(end->failures[0].size, 4096U);
    EXPECT_EQ(end->failures[0].systemErrno, ENOSPC);
    EXPECT_EQ(end->status.message(),
              "POSIX: write /dev/full at 0: 0 of 4096 bytes, No space left on device");
    struct stat info {};
    ASSERT_EQ(stat((folder_ / "99").c_str(), &info), 0);
    EXPECT_EQ(info.st_size, 4096);
}

TEST_P(PosixFailureTest, FullFileSystemTellsHowMuchFitted) {
    const std::string mount_point = folder_ / "small";
    mkdir(mount_point.c_str(), 0700);
    if (mount("none", mount_point.c_str(), "tmpfs", 0, "size=32k") != 0) {
        GTEST_SKIP() << "mounting a small tmpfs: " << errnoText(errno);
    }
    const std::shared_ptr<void> unmount(
        nullptr, [&mount_point](void*) { umount2(mount_point.c_str(), MNT_DETACH); });
    {
        auto file = registerSpec("rw,create,direct:" + mount_point + "/f");
        TestPlan plan(OpType::WRITE);
        plan.add(memory_.data(), 65536, file.get(), 0);
        auto end = post(plan);
        EXPECT_EQ(end->wait(), XferState::FAILED);
        EXPECT_EQ(end->status.systemErrno(), ENOSPC);
        ASSERT_EQ(end->failures.size(), 1U);
        EXPECT_EQ(end->failures[0].done, 32768U) << end->status.message();
    }
}

TEST_P(PosixFailureTest, UnreadableBytesInTheMiddleFailAlone) {
    // /proc/self/mem is a file whose unmapped offsets give EIO.
    auto* pages = static_cast<char*>(
        mmap(nullptr, 3UL * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    pages[0] = 'a';
    pages[8192] = 'c';
    munmap(pages + 4096, 4096);
    auto file = registerSpec("ro:/proc/self/mem");
    TestPlan plan(OpType::READ);
    const auto base = reinterpret_cast<uint64_t>(pages);
    for (uint64_t i = 0; i < 3; ++i) {  // apart in memory, so that each keeps its own vector
        plan.add(memory_.data() + i * 8192, 4096, file.get(), base + i * 4096);
    }
    auto end = post(plan);
    ASSERT_EQ(end->wait(), XferState::FAILED);
    EXPECT_EQ(memory_[0], 'a');
    EXPECT_EQ(memory_[2UL * 8192], 'c') << "the bytes behind the unreadable ones were left out";
    // The first piece is in place; a failure may reach back over it as long as it says so.
    uint64_t failed = 0;
    for (const SegmentFailure& failure : end->failures) {
        EXPECT_EQ(failure.systemErrno, EIO);
        EXPECT_EQ(failure.planOffset + failure.done, 4096U);
        EXPECT_EQ(failure.planOffset + failure.size, 8192U);
        ++failed;
    }
    EXPECT_EQ(failed, 1U);
    munmap(pages, 4096);
    munmap(pages + 8192, 4096);
}

TEST_P(PosixFailureTest, MemoryThatIsGoneFailsItsPieceOnly) {
    // Not unmapped: a thread that starts meanwhile could get the same place for its stack.
    auto* gone =
        static_cast<char*>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(gone, MAP_FAILED);
    for (const std::string flags : {"ro:", "ro,direct:"}) {
        fill(folder_ / "f", 3UL * 4096);
        auto file = registerSpec(flags + (folder_ / "f"));
        TestPlan plan(OpType::READ);
        plan.add(memory_.data(), 4096, file.get(), 0);
        plan.add(gone, 4096, file.get(), 4096);
        plan.add(memory_.data() + 8192, 4096, file.get(), 8192);
        auto end = post(plan);
        ASSERT_EQ(end->wait(), XferState::FAILED);
        EXPECT_EQ(memory_[0], 'x') << flags;
        EXPECT_EQ(memory_[8192], 'x') << flags;
        ASSERT_EQ(end->failures.size(), 1U) << flags;
        EXPECT_EQ(end->failures[0].systemErrno, EFAULT);
        EXPECT_EQ(end->failures[0].planOffset + end->failures[0].size, 8192U);
        memory_.fill('\0');
    }
    munmap(gone, 4096);
}

// Memory that the kernel lends to nobody, as that of some devices: O_DIRECT gives EFAULT.
class PosixPinTest : public PosixFailureTest {
  protected:
    void SetUp() override {
        PosixFailureTest::SetUp();
        constexpr long kMemfdSecret = 447;
        const int secret = IsSkipped() ? -1 : static_cast<int>(syscall(kMemfdSecret, O_CLOEXEC));
        if (secret < 0) {
            GTEST_SKIP() << "memfd_secret: " << errnoText(errno);
        }
        ASSERT_EQ(ftruncate(secret, kSize), 0);
        void* mapped = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, secret, 0);
        close(secret);
        if (mapped == MAP_FAILED) {
            GTEST_SKIP() << "mapping secret memory (RLIMIT_MEMLOCK?): " << errnoText(errno);
        }
        secret_ = static_cast<char*>(mapped);
        fd_ = open((folder_ / "f").c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
        ASSERT_GE(fd_, 0);
        if (pwrite(fd_, secret_, 4096, 0) >= 0) {
            GTEST_SKIP() << "O_DIRECT takes secret memory here, or does not exist";
        }
        ASSERT_EQ(errno, EFAULT);
        auto file = backend_->registerMemory({MemType::FILE, 0, 0, static_cast<uint64_t>(fd_), ""});
        ASSERT_TRUE(file.ok());
        file_ = std::move(file).value();
    }
    void TearDown() override {
        transfers_.clear();
        if (secret_ != nullptr) {
            munmap(secret_, kSize);
        }
        close(fd_);
    }
    std::string stored(size_t size) {
        std::ifstream file(folder_ / "f");
        std::string bytes(size, '\0');
        file.read(bytes.data(), static_cast<std::streamsize>(size));
        return bytes;
    }
    void move(TestPlan& plan) {
        auto end = post(plan);
        ASSERT_EQ(end->wait(), XferState::DONE) << end->status.message();
    }

    static constexpr size_t kSize = 3UL << 20;
    char* secret_ = nullptr;
    int fd_ = -1;
    std::unique_ptr<BackendMemory> file_;
};

INSTANTIATE_TEST_SUITE_P(Engines,
                         PosixPinTest,
                         testing::Values("use_aio", "use_uring", "use_posix_aio", "use_threads"),
                         [](const auto& info) { return std::string(info.param + 4); });

TEST_P(PosixPinTest, MemoryThatCannotBePinnedGoesThroughABounceBuffer) {
    for (const size_t size : {size_t{4096}, kSize}) {  // one request, and more than one
        auto registered = backend_->registerMemory(
            {MemType::DRAM, reinterpret_cast<uint64_t>(secret_), kSize, 0, ""});
        ASSERT_TRUE(registered.ok());
        for (size_t round = 0; round < 3; ++round) {
            for (size_t i = 0; i < size; ++i) {
                secret_[i] = static_cast<char>(i / 512 + round);
            }
            const std::string bytes(secret_, size);
            for (const OpType op : {OpType::WRITE, OpType::READ}) {
                TestPlan plan(op);
                plan.setMemory(registered.value().get());
                plan.add(secret_, size, file_.get(), 0);
                move(plan);
                EXPECT_TRUE(std::string(secret_, size) == bytes);
                // POSIX AIO gathers small pieces anyway, and so does not find out.
                const bool gathers = std::string_view(GetParam()) == "use_posix_aio";
                EXPECT_EQ(static_cast<Memory*>(registered.value().get())->cannotPin,
                          size != 4096 || !gathers);
                std::fill_n(secret_, size, '-');
            }
            EXPECT_TRUE(stored(size) == bytes) << size;
        }
    }
}

TEST_P(PosixPinTest, BesideMemoryThatCanBePinned) {
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        const char fill = op == OpType::WRITE ? 'w' : '-';
        std::fill_n(secret_, 4096, fill == '-' ? fill : 's');
        memory_.fill(fill);
        TestPlan plan(op);  // one request of three pieces
        plan.add(memory_.data(), 4096, file_.get(), 0);
        plan.add(secret_, 4096, file_.get(), 4096);
        plan.add(memory_.data() + 8192, 4096, file_.get(), 8192);
        move(plan);
        const std::string wanted =
            std::string(4096, 'w') + std::string(4096, 's') + std::string(4096, 'w');
        EXPECT_TRUE(stored(wanted.size()) == wanted);
        EXPECT_EQ(std::string(memory_.data(), 4096), std::string(4096, 'w'));
        EXPECT_EQ(std::string(secret_, 4096), std::string(4096, 's'));
        EXPECT_EQ(std::string(memory_.data() + 8192, 4096), std::string(4096, 'w'));
    }
}

TEST_P(PosixFailureTest, DescriptorThatChangedHands) {
    fill(folder_ / "first", 4096);
    fill(folder_ / "second", 4096);
    const int fd = open((folder_ / "first").c_str(), O_RDWR | O_CLOEXEC);
    auto file = backend_->registerMemory({MemType::FILE, 0, 4096, static_cast<uint64_t>(fd), ""});
    ASSERT_TRUE(file.ok());
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.value().get(), 0);
    auto transfer = backend_->prepareTransfer(plan.get()).value();
    const int other = open((folder_ / "second").c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_EQ(dup3(other, fd, O_CLOEXEC), fd);
    close(other);
    auto end = std::make_shared<TestCompletion>();
    const Status posted = transfer->post(end, "", false);
    EXPECT_FALSE(posted.ok());
    EXPECT_THAT(posted.message(), HasSubstr("now belongs to another file"));
    close(fd);
    ASSERT_TRUE(transfer->post(end, "", false).ok());
    EXPECT_EQ(end->wait(), XferState::FAILED);
    EXPECT_EQ(end->status.systemErrno(), EBADF);
    std::ifstream second(folder_ / "second");
    EXPECT_EQ(second.get(), 'x') << "another file was written to";
}

TEST_P(PosixFailureTest, NoDescriptorsLeftIsAnErrorNotAHang) {
    std::vector<std::unique_ptr<BackendMemory>> files;
    TestPlan plan(OpType::WRITE);
    for (size_t i = 0; i < 200; ++i) {
        files.push_back(registerSpec("rw,create:" + (folder_ / std::to_string(i))));
        plan.add(memory_.data(), 4096, files.back().get(), 0);
    }
    files.clear();  // closes them
    for (size_t i = 0; i < 200; ++i) {
        files.push_back(registerSpec("rw:" + (folder_ / std::to_string(i))));
    }
    TestPlan again(OpType::WRITE);
    for (const auto& file : files) {
        again.add(memory_.data(), 4096, file.get(), 0);
    }
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    const int lowest = dup(0);
    close(lowest);
    // Room for five more: evicting must make do with them.
    rlimit tight = before;
    tight.rlim_cur = static_cast<rlim_t>(lowest) + 5;
    // The cache holds up to 200 already; the limit applies to new ones only.
    setrlimit(RLIMIT_NOFILE, &tight);
    auto end = post(again);
    const XferState state = end->wait(30);
    setrlimit(RLIMIT_NOFILE, &before);
    EXPECT_EQ(state, XferState::DONE) << end->status.message();
}

TEST_P(PosixFailureTest, ForkedChildDestroysAtOnce) {
    auto file = registerSpec("rw,create:" + (folder_ / "f"));
    const pid_t child = fork();
    if (child == 0) {
        alarm(5);  // joining the parent's threads would take for ever
        transfers_.clear();
        file.reset();
        backend_.reset();
        _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.get(), 0);
    EXPECT_EQ(post(plan)->wait(), XferState::DONE) << "the parent's backend has to go on";
}

TEST_P(PosixFailureTest, AppendDescriptorIsRefused) {
    const int fd = open((folder_ / "f").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    auto file = backend_->registerMemory({MemType::FILE, 0, 4096, static_cast<uint64_t>(fd), ""});
    ASSERT_TRUE(file.ok());
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.value().get(), 0);
    auto transfer = backend_->prepareTransfer(plan.get());
    ASSERT_FALSE(transfer.ok());
    EXPECT_THAT(transfer.status().message(), HasSubstr("O_APPEND"));
    close(fd);
}

TEST_P(PosixFailureTest, OffsetsBeyondTheEndOfAnyFile) {
    auto file = registerSpec("rw,create:" + (folder_ / "f"));
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.get(), INT64_MAX - 100);
    auto transfer = backend_->prepareTransfer(plan.get());
    ASSERT_FALSE(transfer.ok());
    EXPECT_EQ(transfer.status().code(), ErrorCode::INVALID_PARAM);
}

TEST_P(PosixFailureTest, ReplacedFileIsNotWrittenTo) {
    auto made = PosixBackend::create(parametersWith({{GetParam(), "true"}, {"fd_cache_size", "1"}}),
                                     services_);
    ASSERT_TRUE(made.ok());
    backend_ = std::move(made).value();
    fill(folder_ / "f", 4096);
    auto file = registerSpec("rw:" + (folder_ / "f"));
    auto other = registerSpec("rw,create:" + (folder_ / "other"));  // evicts the first
    fill(folder_ / "new", 4096);
    ASSERT_EQ(rename((folder_ / "new").c_str(), (folder_ / "f").c_str()), 0);
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.get(), 0);
    auto end = post(plan);
    ASSERT_EQ(end->wait(), XferState::FAILED);
    EXPECT_EQ(end->status.systemErrno(), ESTALE);
    EXPECT_THAT(end->status.message(), HasSubstr("another file has taken its name"));
    EXPECT_EQ(std::ifstream(folder_ / "f").get(), 'x');
}

}  // namespace
}  // namespace nixl::posix
