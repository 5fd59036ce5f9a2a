// Conformance: every transfer ends once, and says truthfully how: short, failed, canceled, refused.
#include <atomic>
#include <cstdio>
#include <numeric>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/harness.h"

namespace nixl::testkit {
namespace {

using ::testing::HasSubstr;

uint64_t missing(const std::vector<SegmentFailure>& failures) {
    uint64_t bytes = 0;
    for (const SegmentFailure& failure : failures) {
        EXPECT_LE(failure.done, failure.size);
        bytes += failure.size - failure.done;
    }
    return bytes;
}

// Segments of a storage buffer that ends too early, and one transfer beside it that fits.
void shortRead(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t block = bench.rounded(16384);
    const uint64_t there = bench.rounded(10'000);  // bytes left of four blocks
    const auto local = bench.local(*side, 8 * block);
    const auto remote = bench.remote(*side, 4 * block);
    const auto whole = bench.remote(*side, 4 * block);
    remote->buffer().fill(1);
    whole->buffer().fill(2);
    local->buffer().fill(3);
    if (!remote->buffer().truncate(there)) {
        GTEST_SKIP() << "the buffer cannot be made shorter";
    }
    Job bad(OpType::READ, local->region(), remote->region(), side->peer(true));
    Job good(OpType::READ, local->region(), whole->region(), side->peer(true));
    for (uint64_t i = 0; i < 4; ++i) {
        bad.add({i * block, i * block, block});
        good.add({(4 + i) * block, i * block, block});
    }
    ASSERT_TRUE(bad.prepare(side->backend()).ok());
    ASSERT_TRUE(good.prepare(side->backend()).ok());
    const auto bad_end = bad.post();
    const auto good_end = good.post();
    ASSERT_TRUE(bad_end && good_end);
    ASSERT_TRUE(good.wait(side->backend(), *good_end));
    ASSERT_TRUE(bad.wait(side->backend(), *bad_end));
    EXPECT_EQ(good_end->state(), XferState::DONE)
        << "a failing neighbour must not show: " << good_end->status().message();
    EXPECT_EQ(local->buffer().bytes(4 * block, 4 * block), pattern(2, 0, 4 * block));
    ASSERT_EQ(bad_end->state(), XferState::FAILED);
    EXPECT_EQ(bad_end->status().code(), ErrorCode::BACKEND);
    EXPECT_EQ(missing(bad_end->failures()), 4 * block - there);
    EXPECT_THAT(bad_end->status().message(), HasSubstr("of "));
    EXPECT_THAT(bad_end->status().message(), HasSubstr("bytes"));
    EXPECT_EQ(local->buffer().bytes(0, there), pattern(1, 0, there)) << "what was there is valid";
    // The next post of the same transfer knows nothing of the failure.
    remote->buffer().truncate(4 * block);
    remote->buffer().fill(4);
    EXPECT_TRUE(bad.run(side->backend()));
    EXPECT_EQ(local->buffer().bytes(0, 4 * block), pattern(4, 0, 4 * block));
}

void cancelBeforeAndAfter(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(4096);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    local->buffer().fill(5);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    ASSERT_TRUE(job.add({0, 0, size}).prepare(side->backend()).ok());
    job.transfer().cancel();  // nothing is posted: no effect
    const auto end = job.post();
    ASSERT_TRUE(end && job.wait(side->backend(), *end));
    EXPECT_EQ(end->state(), XferState::DONE) << end->status().message();
    end->requestCancel();
    job.transfer().cancel();
    EXPECT_EQ(end->state(), XferState::DONE);
    EXPECT_EQ(end->ends(), 1);
    EXPECT_TRUE(job.run(side->backend()));
    EXPECT_EQ(remote->buffer().bytes(0, size), pattern(5, 0, size));
}

// Ends soon, as DONE or CANCELED; afterwards no byte of the local side changes, and the transfer
// can be posted again.
void cancelDuring(Bench& bench) {
    const auto side = bench.newSide("conformance-slow", bench.subject().slowParameters);
    ASSERT_TRUE(side);
    const uint64_t size = bench.rounded(bench.subject().largest);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    remote->buffer().fill(6);
    Job job(OpType::READ, local->region(), remote->region(), side->peer(true));
    ASSERT_TRUE(job.add({0, 0, size}).prepare(side->backend()).ok());
    int canceled = 0;
    for (int round = 0; round < 5; ++round) {
        local->buffer().clear();
        const auto end = job.post();
        ASSERT_TRUE(end);
        // sleeps: so that the cancel meets the transfer at another moment in each round
        std::this_thread::sleep_for(std::chrono::microseconds(round * 300));
        end->requestCancel();
        job.transfer().cancel();
        ASSERT_TRUE(job.wait(side->backend(), *end));
        ASSERT_NE(end->state(), XferState::FAILED) << end->status().message();
        if (end->state() == XferState::CANCELED) {
            ++canceled;
            EXPECT_EQ(end->status().code(), ErrorCode::CANCELED);
            const auto before = local->buffer().bytes(0, size);
            // sleeps: for a byte that came late
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            EXPECT_TRUE(before == local->buffer().bytes(0, size)) << "bytes came after the end";
        } else {
            EXPECT_TRUE(local->buffer().bytes(0, size) == pattern(6, 0, size))
                << "DONE, but not all bytes are there";
        }
    }
    std::printf("canceled in flight: %d of 5\n", canceled);
    ASSERT_TRUE(job.run(side->backend()));
    EXPECT_TRUE(local->buffer().bytes(0, size) == pattern(6, 0, size));
}

// cancel() from another thread while post() runs: the only two calls that may meet.
void cancelMeetsPost(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(1 << 20);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    ASSERT_TRUE(job.add({0, 0, size}).prepare(side->backend()).ok());
    constexpr int kRounds = 100;
    std::shared_ptr<TestCompletion> end;
    std::atomic<int> round{0};
    std::atomic<int> answered{0};
    std::thread canceler([&] {
        for (int seen = 0; seen < kRounds; answered = seen) {
            while (round.load() == seen) {
                std::this_thread::yield();
            }
            ++seen;
            end->requestCancel();
            job.transfer().cancel();
        }
    });
    for (int i = 1; i <= kRounds; ++i) {
        end = std::make_shared<TestCompletion>();
        round = i;
        const Status posted = job.transfer().post(end, {}, false);
        if (!posted.ok()) {
            EXPECT_EQ(posted.code(), ErrorCode::CANCELED) << posted.message();
            EXPECT_FALSE(end->final());
        } else if (!job.wait(side->backend(), *end)) {
            std::abort();  // the canceler would wait for ever
        } else {
            EXPECT_NE(end->state(), XferState::FAILED) << end->status().message();
        }
        while (answered.load() != i) {
            std::this_thread::yield();
        }
    }
    canceler.join();
    EXPECT_TRUE(job.run(side->backend()));
}

// How 60 posts end under a plan of faults; a DONE one must have moved all its bytes.
std::string faultySequence(Bench& bench, const backend::FaultPlan& plan) {
    Subject subject = bench.subject();
    subject.fault = plan;
    Bench faulty(subject);
    Side* const side = faulty.side();
    const uint64_t size = bench.rounded(10'000);
    std::string ends;
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    job.add({0, 0, size});
    if (!job.prepare(side->backend()).ok()) {
        return "prepare failed";
    }
    for (uint64_t i = 0; i < 60; ++i) {
        local->buffer().fill(100 + i);
        const auto end = std::make_shared<TestCompletion>();
        const Status posted = job.transfer().post(end, {}, false);
        if (!posted.ok()) {
            EXPECT_FALSE(end->final());
            EXPECT_THAT(posted.message(), HasSubstr("injected fault (seed 7)"));
            ends += 'R';
            continue;
        }
        if (!job.wait(side->backend(), *end)) {
            return "pending for ever";
        }
        if (end->state() == XferState::DONE) {
            EXPECT_EQ(remote->buffer().bytes(0, size), pattern(100 + i, 0, size)) << "post " << i;
            ends += 'D';
        } else {
            EXPECT_THAT(end->status().message(), HasSubstr("injected fault (seed 7)"));
            const uint64_t moved = size - missing(end->failures());
            EXPECT_EQ(remote->buffer().bytes(0, moved), pattern(100 + i, 0, moved)) << "post " << i;
            ends += moved == 0 ? 'F' : 'S';
        }
    }
    return ends;
}

void faultsEveryNth(Bench& bench) {
    if (bench.subject().fault.any()) {
        GTEST_SKIP() << "this subject is under a fault plan of its own";
    }
    backend::FaultPlan plan;
    plan.seed = 7;
    plan.fail = 4;
    plan.shorten = bench.subject().granularity == 1 ? 6 : 0;
    plan.delay = 3;
    plan.duplicate = 2;
    plan.delayTime = std::chrono::microseconds(500);
    std::printf("fault plan: %s\n", plan.text().c_str());
    const std::string ends = faultySequence(bench, plan);
    EXPECT_EQ(std::count(ends.begin(), ends.end(), 'F'), 15) << ends;
    if (plan.shorten != 0) {
        EXPECT_GT(std::count(ends.begin(), ends.end(), 'S'), 0) << ends;
    }
    EXPECT_GT(std::count(ends.begin(), ends.end(), 'D'), 30) << ends;
    EXPECT_EQ(faultySequence(bench, plan), ends) << "equal seeds must give equal faults";

    backend::FaultPlan refusing;
    refusing.seed = 7;
    refusing.refuse = 7;
    const std::string refused = faultySequence(bench, refusing);
    if (refused != "prepare failed") {
        EXPECT_GE(std::count(refused.begin(), refused.end(), 'R'), 8) << refused;
    }
}

void tryRegistrations(Bench& bench, Side& side, const Limit& limit) {
    std::deque<Registered> kept;
    for (uint64_t i = 0; i < limit.most; ++i) {
        kept.emplace_back(side, bench.subject().local(bench.rounded(4096)));
        ASSERT_TRUE(kept.back().ok()) << i << ": " << kept.back().status().message();
    }
    {
        const Registered more(side, bench.subject().local(bench.rounded(4096)));
        ASSERT_FALSE(more.ok());
        EXPECT_FALSE(more.status().message().empty());
        std::printf("limit %s: %s\n", limit.name.c_str(), more.status().message().c_str());
    }
    kept.pop_front();
    EXPECT_TRUE(Registered(side, bench.subject().local(bench.rounded(4096))).ok())
        << "the buffer that became free cannot be used";
}

void tryPending(Bench& bench, Side& side, const Limit& limit) {
    const uint64_t size = bench.rounded(4096);
    const auto local = bench.local(side, size);
    const auto remote = bench.remote(side, size);
    std::deque<Job> jobs;
    std::vector<std::shared_ptr<TestCompletion>> ends;
    for (uint64_t i = 0; i <= limit.most; ++i) {
        jobs.emplace_back(OpType::WRITE, local->region(), remote->region(), side.peer(true));
        ASSERT_TRUE(jobs.back().add({0, 0, size}).prepare(side.backend()).ok());
    }
    for (uint64_t i = 0; i < limit.most; ++i) {
        ends.push_back(jobs[i].post());
        ASSERT_TRUE(ends.back());
    }
    const auto refused = std::make_shared<TestCompletion>();
    const Status status = jobs.back().transfer().post(refused, {}, false);
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(refused->final());
    std::printf("limit %s: %s\n", limit.name.c_str(), status.message().c_str());
    for (uint64_t i = 0; i < limit.most; ++i) {
        ASSERT_TRUE(jobs[i].wait(side.backend(), *ends[i]));
        EXPECT_EQ(ends[i]->state(), XferState::DONE) << ends[i]->status().message();
    }
    EXPECT_TRUE(jobs.back().run(side.backend()));
}

void tryBytes(Bench& bench, Side& side, const Limit& limit) {
    const auto local = bench.local(side, limit.most + bench.rounded(1));
    const auto remote = bench.remote(side, limit.most + bench.rounded(1));
    Job fits(OpType::WRITE, local->region(), remote->region(), side.peer(true));
    EXPECT_TRUE(fits.add({0, 0, limit.most}).run(side.backend()));
    Job over(OpType::WRITE, local->region(), remote->region(), side.peer(true));
    Status status = over.add({0, 0, limit.most + bench.rounded(1)}).prepare(side.backend());
    if (status.ok()) {
        const auto end = over.post();
        ASSERT_TRUE(end && over.wait(side.backend(), *end));
        status = end->status();
    }
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(status.message().empty());
    std::printf("limit %s: %s\n", limit.name.c_str(), status.message().c_str());
}

void limitsAreStatuses(Bench& bench) {
    for (const Limit& limit : bench.subject().limits) {
        SCOPED_TRACE(limit.name);
        const auto side = bench.newSide("conformance-limit", limit.parameters);
        ASSERT_TRUE(side);
        switch (limit.what) {
            case Limit::What::REGISTRATIONS:
                tryRegistrations(bench, *side, limit);
                break;
            case Limit::What::PENDING_POSTS:
                tryPending(bench, *side, limit);
                break;
            case Limit::What::TRANSFER_BYTES:
                tryBytes(bench, *side, limit);
                break;
        }
    }
}

}  // namespace

std::vector<Check> endingChecks() {
    using For = Check::For;
    return {{"ShortRead", For::STORAGE, shortRead},
            {"CancelBeforeAndAfter", For::ALL, cancelBeforeAndAfter},
            {"CancelDuring", For::ALL, cancelDuring},
            {"CancelMeetsPost", For::ALL, cancelMeetsPost},
            {"FaultsEveryNth", For::ALL, faultsEveryNth},
            {"LimitsAreStatuses", For::ALL, limitsAreStatuses, true}};
}

}  // namespace nixl::testkit
