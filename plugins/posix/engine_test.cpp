// Engines and the scheduler without a backend around them: what a hung request does to later ones,
// and how many threads write one file at a time.
#include "engine.h"

#include <array>
#include <condition_variable>
#include <deque>
#include <mutex>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

// Gives reads of one byte from descriptors, one for each add().
class ReadSource final : public RequestSource {
  public:
    void add(int fd) {
        const std::lock_guard lock(mutex_);
        waiting_.push_back(fd);
    }
    size_t draw(std::span<IoRequest*> entries, uint64_t /*byte_budget*/) override {
        const std::lock_guard lock(mutex_);
        size_t count = 0;
        for (; count < entries.size() && !waiting_.empty(); ++count) {
            IoRequest& request = *entries[count];
            request.reset();
            request.fd = waiting_.front();
            request.user.push_back({&byte_, 1});
            request.vectors = request.user.data();
            request.vectorCount = 1;
            request.length = 1;
            waiting_.pop_front();
        }
        return count;
    }
    bool complete(IoRequest& request, int64_t result) override {
        const std::lock_guard lock(mutex_);
        results_.emplace_back(request.fd, result);
        changed_.notify_all();
        return false;
    }
    bool hasWork() const override {
        const std::lock_guard lock(mutex_);
        return !waiting_.empty();
    }
    bool abandoned(const IoRequest& /*request*/) const override { return false; }

    // Waits for the end of `count` requests in all; what ended, in order.
    std::vector<std::pair<int, int64_t>> ended(size_t count, double seconds) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                          [&] { return results_.size() >= count; });
        return results_;
    }

  private:
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<int> waiting_;
    std::vector<std::pair<int, int64_t>> results_;
    char byte_ = 0;
};

// The C library's POSIX AIO reads from a pipe as from a file, so an empty one is a hung disk.
TEST(PosixAioEngineTest, LaterRequestsEndWhileAnEarlierOneHangs) {
    int pipe_fds[2] = {-1, -1};
    ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
    const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(zero, 0);
    ReadSource source;
    EngineOrReason made = makePosixAioEngine({}, source);
    if (made.engine == nullptr) {
        close(zero);
        GTEST_SKIP() << made.reason;
    }
    using Ended = std::vector<std::pair<int, int64_t>>;
    source.add(pipe_fds[0]);
    made.engine->kick();
    EXPECT_EQ(source.ended(1, 0.05), Ended());
    for (size_t i = 1; i <= 20; ++i) {
        source.add(zero);
        made.engine->kick();
        ASSERT_EQ(source.ended(i, 10).size(), i) << "nobody noticed its end";
    }
    ASSERT_EQ(write(pipe_fds[1], "x", 1), 1);
    EXPECT_EQ(source.ended(21, 10).back(), (std::pair<int, int64_t>(pipe_fds[0], 1)));
    EXPECT_TRUE(made.engine->stop(10));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    close(zero);
}

class IdleEngine final : public Engine {
  public:
    const char* name() const override { return "idle"; }
    void kick() override {}
    bool stop(double /*seconds*/) override { return true; }
};

class SchedulerTest : public testing::Test {
  protected:
    SchedulerTest() {
        scheduler_.setEngine(&engine_);
        shared_.log = [](const std::string&) {};
        shared_.queue = &scheduler_;
        shared_.pool = &scheduler_;
    }

    std::unique_ptr<File> open(const std::string& name) {
        const std::string spec = "rw,create:" + (folder_ / name);
        return File::open({MemType::FILE, 0, 1 << 20, 1, spec}, shared_.files, shared_.log).value();
    }

    // Draws one request of 4 KiB, as one thread of the pool does.
    size_t draw(IoRequest& request) {
        std::array<IoRequest*, 1> entries{&request};
        return scheduler_.draw(entries, 4096);
    }

    std::shared_ptr<TestCompletion> start(Job& job) {
        auto completion = std::make_shared<TestCompletion>();
        job.start(completion);
        return completion;
    }

    TempFolder folder_;
    Shared shared_{"POSIX", testkit::devices(), 16, 1, 4096};
    Scheduler scheduler_{shared_};
    IdleEngine engine_;
    std::array<char, 4096> memory_{};
    BuildLimits limits_{4096, true};
};

TEST_F(SchedulerTest, OneThreadAtATimeWritesOneFile) {
    auto file = open("f");
    auto again = open("f");  // another registration of the same file
    TestPlan plan(OpType::WRITE);
    for (uint64_t i = 0; i < 3; ++i) {
        plan.add(memory_.data(), 4096, i == 1 ? again.get() : file.get(), i * 8192);
    }
    Job job(plan.get(), limits_, limits_, shared_);
    auto end = start(job);
    IoRequest first;
    IoRequest second;
    for (int i = 0; i < 2; ++i) {
        ASSERT_EQ(draw(first), 1U);
        EXPECT_EQ(draw(second), 0U) << "a second thread would wait for the file's lock";
        EXPECT_FALSE(scheduler_.complete(first, 4096));
    }
    ASSERT_EQ(draw(first), 1U);
    EXPECT_EQ(end->state(), XferState::PENDING);
    EXPECT_FALSE(scheduler_.complete(first, 4096));
    EXPECT_EQ(end->wait(0), XferState::DONE);
}

TEST_F(SchedulerTest, ManyThreadsReadOneFileAndWriteTwo) {
    auto file = open("f");
    auto other = open("g");
    for (const OpType op : {OpType::READ, OpType::WRITE}) {
        TestPlan plan(op);
        plan.add(memory_.data(), 4096, file.get(), 0);
        plan.add(memory_.data(), 4096, op == OpType::READ ? file.get() : other.get(), 8192);
        Job job(plan.get(), limits_, limits_, shared_);
        auto end = start(job);
        IoRequest first;
        IoRequest second;
        ASSERT_EQ(draw(first), 1U);
        ASSERT_EQ(draw(second), 1U);
        EXPECT_FALSE(scheduler_.complete(first, 4096));
        EXPECT_FALSE(scheduler_.complete(second, 4096));
        EXPECT_EQ(end->wait(0), XferState::DONE);
    }
}

TEST_F(SchedulerTest, CanceledWriterGivesItsBufferBack) {
    auto file = open("f");
    TestPlan plan(OpType::WRITE);
    plan.add(memory_.data(), 4096, file.get(), 0);
    plan.add(memory_.data(), 4096, file.get(), 8192);
    Job job(plan.get(), limits_, limits_, shared_);
    auto end = start(job);
    IoRequest request;
    ASSERT_EQ(draw(request), 1U);
    job.cancel();
    EXPECT_FALSE(scheduler_.complete(request, -ECANCELED));
    EXPECT_EQ(draw(request), 0U);
    EXPECT_EQ(end->wait(0), XferState::CANCELED);
}

}  // namespace
}  // namespace nixl::posix
