// Small transfers that whoever posts submits, over a kernel queue that ends them when the test
// says.
#include "inline_queue.h"

#include <algorithm>
#include <array>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

// What the fake kernel holds; one test at a time.
struct Kernel {
    std::mutex mutex;
    std::vector<unsigned> held;
    std::vector<KernelEnd> ends;
    size_t room = SIZE_MAX;  // what submit() takes at most
    int event = -1;

    size_t count() {
        const std::lock_guard lock(mutex);
        return held.size();
    }
    void end(int64_t result) {
        {
            const std::lock_guard lock(mutex);
            ends.push_back({held.front(), result});
            held.erase(held.begin());
        }
        const uint64_t one = 1;
        ASSERT_EQ(write(event, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
    }
};
Kernel* kernel = nullptr;

class FakeQueue final : public KernelQueue {
  public:
    size_t submit(std::span<IoRequest* const> requests,
                  std::span<const unsigned> entries) override {
        const std::lock_guard lock(kernel->mutex);
        const size_t taken = std::min(requests.size(), kernel->room);
        kernel->held.insert(kernel->held.end(), entries.begin(),
                            entries.begin() + static_cast<ptrdiff_t>(taken));
        return taken;
    }
    bool ended() const override {
        const std::lock_guard lock(kernel->mutex);
        return !kernel->ends.empty();
    }
    int waitFd() const override { return kernel->event; }
    size_t reap(std::span<KernelEnd> ends) override {
        const std::lock_guard lock(kernel->mutex);
        const size_t count = std::min(ends.size(), kernel->ends.size());
        std::copy_n(kernel->ends.begin(), count, ends.begin());
        kernel->ends.erase(kernel->ends.begin(),
                           kernel->ends.begin() + static_cast<ptrdiff_t>(count));
        return count;
    }
};

std::unique_ptr<KernelQueue> openFake(unsigned /*depth*/, int event) {
    kernel->event = event;
    return std::make_unique<FakeQueue>();
}

class IdleEngine final : public Engine {
  public:
    const char* name() const override { return "idle"; }
    void kick() override {}
    bool stop(double /*seconds*/) override { return true; }
};

class InlineQueueTest : public testing::Test {
  protected:
    InlineQueueTest() {
        kernel = &kernel_;
        scheduler_.setEngine(&engine_);
        shared_.log = [](const std::string&) {};
        shared_.queue = &scheduler_;
        shared_.pool = &scheduler_;
        shared_.small = &queue_;
        queue_.open(&openFake);
        fd_ = open((folder_ / "f").c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    }
    void TearDown() override {
        EXPECT_TRUE(queue_.stop(10));
        file_.reset();
        close(fd_);
    }
    void SetUp() override {
        if (fd_ < 0) {
            GTEST_SKIP() << "no O_DIRECT in " << (folder_ / "");
        }
        file_ = File::open({MemType::FILE, 0, 0, static_cast<uint64_t>(fd_), ""}, shared_.files,
                           shared_.log)
                    .value();
        for (uint64_t i = 0; i < 3; ++i) {  // apart in the file: a request each
            plan_.add(memory_.data(), 4096, file_.get(), i * 8192);
        }
        job_ = std::make_unique<Job>(plan_.get(), limits_, limits_, shared_);
        ASSERT_TRUE(job_->light());
    }

    std::shared_ptr<TestCompletion> start() {
        auto end = std::make_shared<TestCompletion>();
        EXPECT_TRUE(job_->holdFiles().ok());
        job_->start(end);
        return end;
    }
    // What the engine would draw, at most `count`.
    std::vector<std::unique_ptr<IoRequest>> draw(size_t count) {
        std::vector<std::unique_ptr<IoRequest>> requests;
        std::vector<IoRequest*> entries;
        for (size_t i = 0; i < count; ++i) {
            requests.push_back(std::make_unique<IoRequest>());
            entries.push_back(requests.back().get());
        }
        requests.resize(scheduler_.draw(entries, UINT64_MAX));
        return requests;
    }

    TempFolder folder_;
    Kernel kernel_;
    Shared shared_{"POSIX", testkit::devices(), 16, 1, 4096};
    Scheduler scheduler_{shared_};
    IdleEngine engine_;
    InlineQueue queue_{scheduler_};
    BuildLimits limits_{4096, true};
    alignas(4096) std::array<char, 4096> memory_{};
    TestPlan plan_{OpType::WRITE};
    int fd_ = -1;
    std::unique_ptr<File> file_;
    std::unique_ptr<Job> job_;
};

TEST_F(InlineQueueTest, ThePosterSubmitsAndThePollerTakesTheEnds) {
    for (int round = 0; round < 3; ++round) {
        auto end = start();
        EXPECT_EQ(kernel_.count(), 3U);
        EXPECT_TRUE(draw(8).empty()) << "nothing is left for the engine";
        for (int i = 0; i < 3; ++i) {
            EXPECT_EQ(end->state(), XferState::PENDING);
            kernel_.end(4096);
        }
        while (!end->final()) {
            queue_.progress();  // or the watcher was faster
        }
        EXPECT_EQ(end->wait(), XferState::DONE);
    }
}

TEST_F(InlineQueueTest, WhatNobodyPollsForEndsToo) {
    for (const bool polled_before : {false, true}) {
        if (polled_before) {  // long enough for the watcher to expect it
            auto end = start();
            for (int i = 0; i < 100'000; ++i) {
                EXPECT_FALSE(queue_.progress());
            }
            for (int i = 0; i < 3; ++i) {
                kernel_.end(4096);
            }
            while (!end->final()) {
                queue_.progress();
            }
        }
        auto end = start();
        for (int i = 0; i < 3; ++i) {
            kernel_.end(4096);
        }
        EXPECT_EQ(end->wait(30), XferState::DONE);
    }
}

TEST_F(InlineQueueTest, WhatWouldHaveToWaitIsLeftToTheEngine) {
    auto end = start();
    kernel_.end(-EAGAIN);
    kernel_.end(1024);  // a part of it
    kernel_.end(-ECANCELED);
    std::vector<std::unique_ptr<IoRequest>> drawn;
    while (drawn.size() < 3) {
        queue_.progress();
        for (auto& one : draw(8)) {
            drawn.push_back(std::move(one));
        }
    }
    uint64_t left = 0;
    for (const auto& request : drawn) {
        left += request->length;
        EXPECT_EQ(request->vectors->iov_len, request->length);
        EXPECT_FALSE(scheduler_.complete(*request, static_cast<int64_t>(request->length)));
    }
    EXPECT_EQ(left, 3U * 4096 - 1024);
    EXPECT_EQ(end->wait(0), XferState::DONE);
}

TEST_F(InlineQueueTest, TheEngineGoesOnWithTheSameFile) {
    struct stat before {};
    ASSERT_EQ(fstat(fd_, &before), 0);
    auto end = start();
    const int other = open((folder_ / "other").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_EQ(dup3(other, fd_, O_CLOEXEC), fd_) << "the number is another file's from here on";
    close(other);
    kernel_.end(4096);
    kernel_.end(-EAGAIN);
    kernel_.end(4096);
    std::vector<std::unique_ptr<IoRequest>> drawn;
    while (drawn.empty()) {
        queue_.progress();
        drawn = draw(8);
    }
    struct stat now {};
    ASSERT_EQ(fstat(drawn[0]->fd, &now), 0);
    EXPECT_EQ(now.st_ino, before.st_ino);
    EXPECT_FALSE(scheduler_.complete(*drawn[0], 4096));
    EXPECT_EQ(end->wait(30), XferState::DONE);
}

TEST_F(InlineQueueTest, WhatTheKernelDoesNotTakeIsLeftToTheEngine) {
    kernel_.room = 1;
    auto end = start();
    EXPECT_EQ(kernel_.count(), 1U);
    for (const auto& request : draw(8)) {
        EXPECT_FALSE(scheduler_.complete(*request, 4096));
    }
    EXPECT_EQ(end->state(), XferState::PENDING);
    kernel_.end(4096);
    EXPECT_EQ(end->wait(30), XferState::DONE);
}

TEST_F(InlineQueueTest, AFailureIsNamed) {
    auto end = start();
    kernel_.end(4096);
    kernel_.end(-ENOSPC);
    kernel_.end(4096);
    EXPECT_EQ(end->wait(30), XferState::FAILED);
    ASSERT_EQ(end->failures.size(), 1U);
    EXPECT_EQ(end->failures[0].planOffset, 4096U);
    EXPECT_EQ(end->failures[0].systemErrno, ENOSPC);
}

TEST_F(InlineQueueTest, PostsBeyondItsRoomGoToTheEngine) {
    std::vector<std::unique_ptr<Job>> jobs;
    std::vector<std::shared_ptr<TestCompletion>> ends;
    for (unsigned i = 0; i < 2 * InlineQueue::kEntries / 3; ++i) {
        jobs.push_back(std::make_unique<Job>(plan_.get(), limits_, limits_, shared_));
        ends.push_back(std::make_shared<TestCompletion>());
        jobs.back()->start(ends.back());
    }
    EXPECT_LE(kernel_.count(), InlineQueue::kEntries);
    while (kernel_.count() > 0) {
        kernel_.end(4096);
    }
    for (auto drawn = draw(8); !drawn.empty(); drawn = draw(8)) {
        for (const auto& request : drawn) {
            EXPECT_FALSE(scheduler_.complete(*request, 4096));
        }
    }
    for (const auto& end : ends) {
        EXPECT_EQ(end->wait(30), XferState::DONE);
    }
}

}  // namespace
}  // namespace nixl::posix
