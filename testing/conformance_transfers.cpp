// Conformance: bytes arrive, all of them, where they belong, and nowhere else.
#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "testing/harness.h"

namespace nixl::testkit {
namespace {

constexpr uint64_t kMargin = 8192;  // bytes around a transfer that must not change

// Names the first difference; comparing with EXPECT_EQ would print megabytes.
::testing::AssertionResult same(const std::vector<uint8_t>& got,
                                const std::vector<uint8_t>& wanted) {
    if (got == wanted) {
        return ::testing::AssertionSuccess();
    }
    const auto [a, b] = std::mismatch(got.begin(), got.end(), wanted.begin(), wanted.end());
    return ::testing::AssertionFailure()
           << "byte " << a - got.begin() << " of " << got.size() << " (wanted " << wanted.size()
           << ") is " << (a == got.end() ? -1 : *a) << ", not " << (b == wanted.end() ? -1 : *b);
}

// Writes `size` bytes from one buffer to the other and reads them back into a third.
void roundTrip(Bench& bench, uint64_t size, uint64_t local_shift, uint64_t remote_shift) {
    SCOPED_TRACE("size " + std::to_string(size) + ", local +" + std::to_string(local_shift) +
                 ", remote +" + std::to_string(remote_shift));
    Side* const side = bench.side();
    const uint64_t whole = bench.rounded(size + 2 * kMargin);
    const auto from = bench.local(*side, whole);
    const auto there = bench.remote(*side, whole);
    const auto back = bench.local(*side, whole);
    if (!from->ok() || !there->ok() || !back->ok()) {
        return;
    }
    from->buffer().fill(1);
    there->buffer().fill(2);
    back->buffer().fill(3);
    const uint64_t local = kMargin + local_shift;
    const uint64_t remote = kMargin + remote_shift;
    Job write(OpType::WRITE, from->region(), there->region(), side->peer(true));
    Job read(OpType::READ, back->region(), there->region(), side->peer(true));
    if (!write.add({local, remote, size}).run(side->backend())) {
        return;
    }
    EXPECT_TRUE(same(there->buffer().bytes(0, remote), pattern(2, 0, remote)));
    EXPECT_TRUE(same(there->buffer().bytes(remote, size), pattern(1, local, size)));
    const uint64_t after = remote + size;
    EXPECT_TRUE(
        same(there->buffer().bytes(after, whole - after), pattern(2, after, whole - after)));
    if (!read.add({local, remote, size}).run(side->backend())) {
        return;
    }
    EXPECT_TRUE(same(back->buffer().bytes(0, local), pattern(3, 0, local)));
    EXPECT_TRUE(same(back->buffer().bytes(local, size), pattern(1, local, size)));
    const uint64_t end = local + size;
    EXPECT_TRUE(same(back->buffer().bytes(end, whole - end), pattern(3, end, whole - end)));
}

void roundTripSizes(Bench& bench) {
    std::set<uint64_t> sizes;
    for (uint64_t size : {1,   2,    7,    8,    9,     63,    64,    65,      511,     512,
                          513, 4095, 4096, 4097, 65535, 65536, 65537, 1048575, 1048576, 1048577}) {
        sizes.insert(bench.rounded(size));
    }
    for (const uint64_t size : sizes) {
        roundTrip(bench, size, 0, 0);
        if (::testing::Test::HasFailure()) {
            return;
        }
    }
}

void roundTripOddBuffers(Bench& bench) {
    const uint64_t step = bench.subject().granularity;
    for (const uint64_t size : {1, 513, 4096, 100'000}) {
        for (const auto& [local, remote] :
             {std::pair{1, 0}, std::pair{0, 1}, std::pair{3, 5}, std::pair{4095, 511}}) {
            roundTrip(bench, bench.rounded(size), static_cast<uint64_t>(local) * step % kMargin,
                      static_cast<uint64_t>(remote) * step % kMargin);
        }
    }
}

void roundTripLargest(Bench& bench) {
    roundTrip(bench, bench.rounded(bench.subject().largest), 0, 0);
}

// Segments of all sizes in random order: no two touch the same bytes of the target.
void scatteredSegments(Bench& bench) {
    Side* const side = bench.side();
    std::mt19937_64 random(7);
    const uint64_t step = bench.subject().granularity;
    const uint64_t cell = 4 * std::max<uint64_t>(step, 512);
    constexpr uint64_t kCells = 2000;
    const auto local = bench.local(*side, kCells * cell);
    const auto remote = bench.remote(*side, kCells * cell);
    if (!local->ok() || !remote->ok()) {
        return;
    }
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        local->buffer().fill(10);
        remote->buffer().fill(11);
        std::vector<uint64_t> order(kCells);
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random);
        Job job(op, local->region(), remote->region(), side->peer(true));
        const uint64_t whole = kCells * cell;
        std::vector<uint8_t> wanted = pattern(op == OpType::WRITE ? 11 : 10, 0, whole);
        for (uint64_t i = 0; i < kCells; ++i) {
            const uint64_t size = bench.rounded(1 + random() % (cell - step));
            const Piece piece{i * cell, order[i] * cell, std::min(size, cell)};
            job.add(piece);
            const bool write = op == OpType::WRITE;
            const auto bytes =
                pattern(write ? 10 : 11, write ? piece.local : piece.remote, piece.size);
            const uint64_t target = write ? piece.remote : piece.local;
            std::copy(bytes.begin(), bytes.end(), wanted.begin() + static_cast<int64_t>(target));
        }
        if (!job.run(side->backend())) {
            return;
        }
        Buffer& target = op == OpType::WRITE ? remote->buffer() : local->buffer();
        EXPECT_TRUE(same(target.bytes(0, whole), wanted)) << opName(op);
    }
}

// Runs with strides, neighbours that could be merged, and single segments in one plan.
void regularRuns(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t block = bench.rounded(1000);
    const auto local = bench.local(*side, 4000 * block);
    const auto remote = bench.remote(*side, 4000 * block);
    if (!local->ok() || !remote->ok()) {
        return;
    }
    local->buffer().fill(20);
    remote->buffer().fill(21);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    std::vector<uint8_t> wanted = pattern(21, 0, 4000 * block);
    const auto add = [&](const PlanRun& run) {
        job.addRun(run);
        for (uint64_t i = 0; i < run.count; ++i) {
            const auto bytes = pattern(20, run.local + i * run.localStride, run.size);
            std::copy(bytes.begin(), bytes.end(),
                      wanted.begin() + static_cast<int64_t>(run.remote + i * run.remoteStride));
        }
    };
    const uint64_t back = 0 - 2 * block;  // downwards: strides count modulo 2^64
    add({.size = block, .localStride = 2 * block, .remoteStride = block, .count = 1000});
    add({.local = block, .remote = 1000 * block, .size = block});
    add({.local = 3000 * block,
         .remote = 1001 * block,
         .size = block,
         .localStride = back,
         .remoteStride = 2 * block,
         .count = 999});
    add({.local = 0,
         .remote = 3500 * block,
         .size = 3 * block,
         .localStride = 0,
         .remoteStride = 5 * block,
         .count = 50});
    if (job.run(side->backend())) {
        EXPECT_TRUE(same(remote->buffer().bytes(0, 4000 * block), wanted));
    }
}

void rePost(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(4096);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    job.add({0, 0, size});
    for (unsigned round = 0; round < bench.subject().reposts; ++round) {
        local->buffer().fill(round);
        if (!job.run(side->backend())) {
            return;
        }
        ASSERT_TRUE(same(remote->buffer().bytes(0, size), pattern(round, 0, size)))
            << "round " << round;
    }
}

// Several transfers posted at once, awaited in another order.
void manyPending(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(100'000);
    constexpr uint64_t kJobs = 32;
    const auto local = bench.local(*side, kJobs * size);
    const auto remote = bench.remote(*side, kJobs * size);
    local->buffer().fill(30);
    std::deque<Job> jobs;
    std::vector<std::shared_ptr<TestCompletion>> ends;
    for (uint64_t i = 0; i < kJobs; ++i) {
        jobs.emplace_back(OpType::WRITE, local->region(), remote->region(), side->peer(true));
        const Status status =
            jobs.back().add({i * size, (kJobs - 1 - i) * size, size}).prepare(side->backend());
        ASSERT_TRUE(status.ok()) << status.message();
    }
    for (Job& job : jobs) {
        ends.push_back(job.post());
    }
    for (uint64_t i = kJobs; i-- > 0;) {
        ASSERT_TRUE(ends[i] && jobs[i].wait(side->backend(), *ends[i]));
        EXPECT_EQ(ends[i]->state(), XferState::DONE) << ends[i]->status().message();
        EXPECT_TRUE(same(remote->buffer().bytes((kJobs - 1 - i) * size, size),
                         pattern(30, i * size, size)));
    }
}

// One thread of several(): its own regions and transfers, all over one backend.
void threadRounds(Bench& bench, Side& side, unsigned number) {
    const uint64_t size = bench.rounded(1 + 30'000 * number);
    constexpr int kRounds = 30;
    for (int round = 0; round < kRounds && !::testing::Test::HasFailure(); ++round) {
        const auto local = bench.local(side, 2 * size);
        const auto remote = bench.remote(side, 2 * size);
        local->buffer().fill(number);
        Job write(OpType::WRITE, local->region(), remote->region(), side.peer(true));
        Job read(OpType::READ, local->region(), remote->region(), side.peer(true));
        if (write.add({0, size, size}).run(side.backend()) &&
            read.add({size, size, size}).run(side.backend())) {
            EXPECT_TRUE(same(local->buffer().bytes(size, size), pattern(number, 0, size)));
        }
    }
}

void manyThreads(Bench& bench) {
    Side* const side = bench.side();
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < bench.subject().threads; ++i) {
        threads.emplace_back([&bench, side, i] { threadRounds(bench, *side, i); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

// A plan of nothing is refused with a reason, or done.
void nothingToMove(Bench& bench) {
    Side* const side = bench.side();
    const auto local = bench.local(*side, bench.rounded(4096));
    const auto remote = bench.remote(*side, bench.rounded(4096));
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    const Status status = job.prepare(side->backend());
    if (status.ok()) {
        job.run(side->backend());
    } else {
        EXPECT_FALSE(status.message().empty());
    }
}

}  // namespace

std::vector<Check> transferChecks() {
    using For = Check::For;
    return {{"RoundTripSizes", For::ALL, roundTripSizes},
            {"RoundTripOddBuffers", For::ALL, roundTripOddBuffers},
            {"RoundTripLargest", For::ALL, roundTripLargest},
            {"ScatteredSegments", For::ALL, scatteredSegments},
            {"RegularRuns", For::ALL, regularRuns},
            {"RePost", For::ALL, rePost},
            {"ManyPending", For::ALL, manyPending},
            {"ManyThreads", For::ALL, manyThreads},
            {"NothingToMove", For::ALL, nothingToMove}};
}

}  // namespace nixl::testkit
