// Moves real bytes through real files with each engine, with and without O_DIRECT.
#include "posix_backend.h"

#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

struct Mode {
    const char* name;
    const char* key;  // of the parameter that chooses it
    const char* engine;
    bool direct;
};

// NOLINTNEXTLINE(readability-identifier-naming)
void PrintTo(const Mode& mode, std::ostream* out) {
    *out << mode.name;
}

constexpr std::array kModes{
    Mode{"AioDirect", "use_aio", "Linux AIO", true},
    Mode{"UringDirect", "use_uring", "io_uring", true},
    Mode{"PosixAioDirect", "use_posix_aio", "POSIX AIO", true},
    Mode{"ThreadsDirect", "use_threads", "threads", true},
    Mode{"Buffered", "use_threads", "threads", false},
};

std::string pattern(size_t size, unsigned seed) {
    std::mt19937_64 random(seed);
    std::string bytes(size, '\0');
    for (char& byte : bytes) {
        byte = static_cast<char>(random());
    }
    return bytes;
}

// Page-aligned memory of the test.
class Pages {
  public:
    explicit Pages(size_t size) : size_(size + 8192) {
        data_ = static_cast<char*>(
            mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    ~Pages() { munmap(data_, size_); }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    char* data() { return data_; }

  private:
    size_t size_;
    char* data_;
};

class PosixBackendTest : public testing::TestWithParam<Mode> {
  protected:
    void SetUp() override { create({}); }

    void create(std::map<std::string, std::string> parameters) {
        parameters[GetParam().key] = "true";
        auto made = PosixBackend::create(parametersWith(parameters), services_);
        ASSERT_TRUE(made.ok()) << made.status().message();
        backend_ = std::move(made).value();
        const auto* posix = static_cast<PosixBackend*>(backend_.get());
        if (std::string_view(posix->engineName()) != GetParam().engine) {
            GTEST_SKIP() << "the system does not permit it: " << services_.text(LogLevel::WARN);
        }
    }

    std::unique_ptr<BackendMemory> registerPath(const std::string& path) {
        const std::string spec =
            std::string(GetParam().direct ? "rw,create,direct:" : "rw,create:") + path;
        auto file = backend_->registerMemory({MemType::FILE, 0, 1 << 30, 1, spec});
        EXPECT_TRUE(file.ok()) << file.status().message();
        return file.ok() ? std::move(file).value() : nullptr;
    }

    XferState run(TestPlan& plan) {
        auto transfer = backend_->prepareTransfer(plan.get());
        EXPECT_TRUE(transfer.ok()) << transfer.status().message();
        auto completion = std::make_shared<TestCompletion>();
        const Status posted = transfer.value()->post(completion, "", false);
        EXPECT_TRUE(posted.ok()) << posted.message();
        const XferState state = completion->wait();
        EXPECT_TRUE(state != XferState::FAILED) << completion->status.message();
        return state;
    }

    std::string contents(const std::string& path) {
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat info {};
        fstat(fd, &info);
        std::string bytes(static_cast<size_t>(info.st_size), '\0');
        EXPECT_EQ(read(fd, bytes.data(), bytes.size()), info.st_size);
        close(fd);
        return bytes;
    }

    TestServices services_;
    std::unique_ptr<Backend> backend_;
    TempFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Engines,
                         PosixBackendTest,
                         testing::ValuesIn(kModes),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(PosixBackendTest, RoundTripsOfManySizes) {
    auto file = registerPath(folder_ / "f");
    for (const size_t size : {size_t{1}, size_t{511}, size_t{512}, size_t{4096}, size_t{4097},
                              size_t{65536}, size_t{1} << 20, (size_t{5} << 20) + 123}) {
        for (const size_t misalign : {size_t{0}, size_t{16}, size_t{1}}) {
            for (const uint64_t offset : {uint64_t{0}, uint64_t{4096}, uint64_t{1000}}) {
                Pages source(size + misalign);
                Pages target(size + misalign);
                const std::string bytes = pattern(size, static_cast<unsigned>(size));
                bytes.copy(source.data() + misalign, size);
                TestPlan write(OpType::WRITE);
                write.add(source.data() + misalign, size, file.get(), offset);
                ASSERT_EQ(run(write), XferState::DONE);
                TestPlan read(OpType::READ);
                read.add(target.data() + misalign, size, file.get(), offset);
                ASSERT_EQ(run(read), XferState::DONE);
                ASSERT_EQ(std::string(target.data() + misalign, size), bytes)
                    << size << " bytes at " << offset << ", memory off by " << misalign;
            }
        }
    }
}

TEST_P(PosixBackendTest, UnalignedWriteLeavesNeighboursAlone) {
    const std::string path = folder_ / "f";
    const std::string before = pattern(1 << 20, 1);
    auto file = registerPath(path);
    Pages source(1 << 20);
    before.copy(source.data(), before.size());
    TestPlan all(OpType::WRITE);
    all.add(source.data(), before.size(), file.get(), 0);
    ASSERT_EQ(run(all), XferState::DONE);

    const std::string middle = pattern(300'001, 2);
    middle.copy(source.data() + 3, middle.size());
    TestPlan some(OpType::WRITE);
    some.add(source.data() + 3, middle.size(), file.get(), 12'345);
    ASSERT_EQ(run(some), XferState::DONE);

    std::string expected = before;
    expected.replace(12'345, middle.size(), middle);
    EXPECT_TRUE(contents(path) == expected);
}

TEST_P(PosixBackendTest, ScatteredMemoryBecomesOneFile) {
    // Neighbours in the file, apart in memory; then back in another order.
    constexpr size_t kCount = 1000;
    constexpr size_t kSize = 4096;
    const std::string path = folder_ / "f";
    auto file = registerPath(path);
    Pages source(kCount * kSize * 2);
    Pages target(kCount * kSize * 2);
    const std::string bytes = pattern(kCount * kSize * 2, 3);
    bytes.copy(source.data(), bytes.size());
    PlanRun run_of;
    run_of.local = reinterpret_cast<uint64_t>(source.data());
    run_of.size = kSize;
    run_of.localStride = 2 * kSize;
    run_of.remoteStride = kSize;
    run_of.count = kCount;
    TestPlan write(OpType::WRITE);
    write.addRun(run_of, file.get());
    ASSERT_EQ(run(write), XferState::DONE);
    TestPlan read(OpType::READ);
    for (size_t i = 0; i < kCount; ++i) {
        const size_t from = (i * 7) % kCount;
        read.add(target.data() + i * kSize, kSize, file.get(), from * kSize);
    }
    ASSERT_EQ(run(read), XferState::DONE);
    for (size_t i = 0; i < kCount; ++i) {
        const size_t from = (i * 7) % kCount;
        ASSERT_EQ(std::string_view(target.data() + i * kSize, kSize),
                  std::string_view(bytes).substr(from * 2 * kSize, kSize))
            << i;
    }
}

TEST_P(PosixBackendTest, SixtyFourThousandSegmentsInOnePost) {
    constexpr size_t kCount = 65'536;
    const std::string path = folder_ / "f";
    auto file = registerPath(path);
    Pages source(kCount * 512);
    const std::string bytes = pattern(kCount * 512, 4);
    bytes.copy(source.data(), bytes.size());
    TestPlan whole(OpType::WRITE);
    whole.add(source.data(), bytes.size(), file.get(), 0);
    ASSERT_EQ(run(whole), XferState::DONE);
    Pages target(kCount * 512);
    PlanRun backwards;  // nothing to merge
    backwards.local = reinterpret_cast<uint64_t>(target.data()) + (kCount - 1) * 512;
    backwards.remote = (kCount - 1) * 512;
    backwards.size = 512;
    backwards.localStride = static_cast<uint64_t>(-512);
    backwards.remoteStride = static_cast<uint64_t>(-512);
    backwards.count = kCount;
    TestPlan read(OpType::READ);
    read.addRun(backwards, file.get());
    ASSERT_EQ(run(read), XferState::DONE);
    EXPECT_TRUE(std::string_view(target.data(), bytes.size()) == bytes);
}

TEST_P(PosixBackendTest, PostedAgainAThousandTimes) {
    const std::string path = folder_ / "f";
    auto file = registerPath(path);
    Pages memory(8192);
    TestPlan plan(OpType::WRITE);
    plan.add(memory.data(), 4096, file.get(), 0);
    auto transfer = backend_->prepareTransfer(plan.get());
    ASSERT_TRUE(transfer.ok());
    for (int i = 0; i < 1000; ++i) {
        std::memcpy(memory.data(), &i, sizeof(i));
        auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer.value()->post(completion, "", false).ok());
        ASSERT_EQ(completion->wait(), XferState::DONE);
    }
    int last = 0;
    std::memcpy(&last, contents(path).data(), sizeof(last));
    EXPECT_EQ(last, 999);
}

TEST_P(PosixBackendTest, FiveHundredHandlesAtOnceFromFourThreads) {
    constexpr size_t kThreads = 4;
    constexpr size_t kEach = 125;
    constexpr size_t kSize = 20'000;
    create({{"queue_depth", "4"}, {"bounce_buffers", "1"}});
    if (IsSkipped()) {
        return;
    }
    auto file = registerPath(folder_ / "f");
    const std::string bytes = pattern(kThreads * kEach * kSize, 5);
    std::string source = bytes;  // not page-aligned: bounce buffers where direct
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
            std::vector<std::unique_ptr<TestPlan>> plans;
            std::vector<std::unique_ptr<BackendTransfer>> transfers;
            std::vector<std::shared_ptr<TestCompletion>> ends;
            for (size_t i = 0; i < kEach; ++i) {
                const size_t at = (t * kEach + i) * kSize;
                plans.push_back(std::make_unique<TestPlan>(OpType::WRITE));
                plans.back()->add(source.data() + at, kSize, file.get(), at);
                transfers.push_back(backend_->prepareTransfer(plans.back()->get()).value());
                ends.push_back(std::make_shared<TestCompletion>());
                EXPECT_TRUE(transfers.back()->post(ends.back(), "", false).ok());
            }
            for (const auto& end : ends) {
                EXPECT_EQ(end->wait(), XferState::DONE) << end->status.message();
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_TRUE(contents(folder_ / "f") == bytes);
}

TEST_P(PosixBackendTest, CancelEndsSoonAndTheHandlePostsAgain) {
    create({{"queue_depth", "2"}, {"max_in_flight", "2M"}, {"pool_size", "1"}});
    if (IsSkipped()) {
        return;
    }
    constexpr size_t kSize = 256 << 20;
    auto file = registerPath(folder_ / "f");
    Pages memory(kSize);
    TestPlan plan(OpType::WRITE);
    plan.add(memory.data(), kSize, file.get(), 0);
    auto transfer = backend_->prepareTransfer(plan.get());
    ASSERT_TRUE(transfer.ok());
    // A busy machine may take the processor away between post and cancel: a few attempts.
    XferState state = XferState::DONE;
    for (int attempt = 0; attempt < 20 && state == XferState::DONE; ++attempt) {
        auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer.value()->post(completion, "", false).ok());
        completion->requestCancel();
        transfer.value()->cancel();
        state = completion->wait(30);
    }
    EXPECT_EQ(state, XferState::CANCELED) << "256 MiB with 2 MiB in flight ended before a cancel";
    transfer.value()->cancel();  // nothing is posted: harmless

    TestPlan small(OpType::WRITE);
    small.add(memory.data(), 1 << 20, file.get(), 0);
    EXPECT_EQ(run(small), XferState::DONE);
    auto again = std::make_shared<TestCompletion>();
    ASSERT_TRUE(transfer.value()->post(again, "", false).ok());
    EXPECT_EQ(again->wait(), XferState::DONE);
}

TEST_P(PosixBackendTest, DestroyedWithWorkInFlight) {
    constexpr size_t kSize = 64 << 20;
    auto file = registerPath(folder_ / "f");
    Pages memory(kSize);
    TestPlan plan(OpType::WRITE);
    plan.add(memory.data(), kSize, file.get(), 0);
    auto transfer = backend_->prepareTransfer(plan.get());
    ASSERT_TRUE(transfer.ok());
    auto completion = std::make_shared<TestCompletion>();
    ASSERT_TRUE(transfer.value()->post(completion, "", false).ok());
    // The core ends transfers before backends; here the backend itself has to end them.
    auto* backend = backend_.release();
    std::thread destroyer([backend] { delete backend; });
    EXPECT_NE(completion->wait(30), XferState::PENDING);
    destroyer.join();
}

TEST_P(PosixBackendTest, ManyPathFilesUnderFewDescriptors) {
    create({{"fd_cache_size", "8"}});
    if (IsSkipped()) {
        return;
    }
    constexpr size_t kFiles = 500;
    Pages source(kFiles * 4096);
    const std::string bytes = pattern(kFiles * 4096, 6);
    bytes.copy(source.data(), bytes.size());
    std::vector<std::unique_ptr<BackendMemory>> files;
    TestPlan write(OpType::WRITE);
    for (size_t i = 0; i < kFiles; ++i) {
        files.push_back(registerPath(folder_ / std::to_string(i)));
        write.add(source.data() + i * 4096, 4096, files.back().get(), 0);
    }
    ASSERT_EQ(run(write), XferState::DONE);
    for (size_t i = 0; i < kFiles; i += 61) {
        EXPECT_TRUE(contents(folder_ / std::to_string(i)) == bytes.substr(i * 4096, 4096)) << i;
    }
    Pages target(kFiles * 4096);
    TestPlan read(OpType::READ);
    for (size_t i = 0; i < kFiles; ++i) {
        read.add(target.data() + i * 4096, 4096, files[i].get(), 0);
    }
    ASSERT_EQ(run(read), XferState::DONE);
    EXPECT_TRUE(std::string_view(target.data(), bytes.size()) == bytes);
}

TEST_P(PosixBackendTest, CallersDescriptor) {
    const std::string path = folder_ / "f";
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | (GetParam().direct ? O_DIRECT : 0);
    const int fd = open(path.c_str(), flags, 0600);
    ASSERT_GE(fd, 0);
    auto file = backend_->registerMemory(
        {MemType::FILE, 0, 1 << 20, static_cast<uint64_t>(fd), "a label, no path"});
    ASSERT_TRUE(file.ok()) << file.status().message();
    std::string source = pattern(100'000, 7);
    TestPlan write(OpType::WRITE);
    write.add(source.data(), source.size(), file.value().get(), 100);
    ASSERT_EQ(run(write), XferState::DONE);
    EXPECT_TRUE(contents(path).substr(100) == source);
    file = Status::notFound("");
    EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC) << "deregistering closed the caller's descriptor";
    close(fd);
}

TEST_P(PosixBackendTest, RegisteredBuffers) {
    create({{"register_buffers", "true"}});
    if (IsSkipped()) {
        return;
    }
    auto file = registerPath(folder_ / "f");
    Pages source(1 << 20);
    const std::string bytes = pattern(1 << 20, 8);
    bytes.copy(source.data(), bytes.size());
    auto memory = backend_->registerMemory(
        {MemType::DRAM, reinterpret_cast<uint64_t>(source.data()), 1 << 20, 0, ""});
    ASSERT_TRUE(memory.ok());
    TestPlan write(OpType::WRITE);
    write.setMemory(memory.value().get());
    write.add(source.data() + 8192, 512 << 10, file.get(), 0);
    ASSERT_EQ(run(write), XferState::DONE);
    EXPECT_TRUE(contents(folder_ / "f") == bytes.substr(8192, 512 << 10));
}

}  // namespace
}  // namespace nixl::posix
