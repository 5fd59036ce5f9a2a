// Both sides of a data connection against each other over a pipe that cuts anywhere: bytes arrive
// where they belong, refused accesses touch nothing, cancel lets go of memory at once.
#include <algorithm>
#include <functional>
#include <memory>
#include <random>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "lanes/stream/client.h"
#include "lanes/stream/target.h"
#include "session/testing_access.h"

namespace nixl::peer {
namespace {

const base::Digest kKey{9};

class StreamTest : public testing::Test {
  protected:
    StreamTest() : remote_(4 << 20), local_(4 << 20) {
        std::mt19937_64 random(7);
        for (auto* memory : {&remote_, &local_}) {
            for (char& byte : *memory) {
                byte = static_cast<char>(random());
            }
        }
        access_.enter(1, remote_.data(), remote_.size() / 2);
        access_.enter(2, remote_.data() + remote_.size() / 2, remote_.size() / 2, 5);
    }

    uint64_t remoteAt(uint64_t offset) const {
        return reinterpret_cast<uint64_t>(remote_.data()) + offset;
    }
    uint64_t localAt(uint64_t offset) const {
        return reinterpret_cast<uint64_t>(local_.data()) + offset;
    }
    // `change` edits the request before it is encoded.
    StreamPart part(OpType op,
                    std::vector<MemoryRun> local,
                    std::vector<MemoryRun> remote,
                    const std::function<void(Request&, Key&)>& change = {}) {
        Key key = access_.grant();
        Request request;
        request.op = op;
        request.grant = grantId(access_.grant());
        request.flags = checksum_ ? kRequestChecksum : 0;
        request.regions = {{1, 1}, {2, 5}};
        request.runs = std::move(remote);
        for (const MemoryRun& run : request.runs) {
            request.bytes += run.bytes();
        }
        if (change) {
            change(request, key);
        }
        return {std::make_shared<PreparedRequest>(request, key, std::move(local), 0), ++nextId_,
                owner_};
    }
    // One step in one direction, at most `cut` bytes.
    template <typename From, typename To>
    bool move(From& from, To& to, size_t cut) {
        iovec out[16];
        const size_t count = std::min<size_t>(random_() % 2 == 0 ? 2 : 16, 16);
        size_t vectors = from.output(out, count);
        std::string bytes;
        for (size_t i = 0; i < vectors && bytes.size() < cut; ++i) {
            bytes.append(static_cast<char*>(out[i].iov_base),
                         std::min(out[i].iov_len, cut - bytes.size()));
        }
        if (damage_ && !bytes.empty() && bytes.size() > 500) {
            bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
            damage_ = false;
        }
        from.sent(bytes.size());
        for (std::string_view rest = bytes; !rest.empty();) {
            iovec in[8];
            vectors = to.inputSpace(in, 8);
            size_t got = 0;
            for (size_t i = 0; i < vectors && !rest.empty(); ++i) {
                const size_t n = std::min(in[i].iov_len, rest.size());
                std::memcpy(in[i].iov_base, rest.data(), n);
                rest.remove_prefix(n);
                got += n;
            }
            status_ = to.received(got);
            if (!status_.ok()) {
                return false;
            }
            if (got == 0) {
                kept_ = std::string(rest);  // it takes nothing now
                ADD_FAILURE() << "bytes for nobody";
                return false;
            }
        }
        return !bytes.empty();
    }
    void run(size_t cut) {
        for (bool moved = true; moved && status_.ok();) {
            moved = false;
            while (target_.wantsOutput() && status_.ok()) {
                moved = move(target_, client_, cut) || moved;
            }
            status_ = status_.ok() ? target_.received(0) : status_;
            if (!target_.wantsOutput() && client_.wantsOutput() && status_.ok()) {
                moved = move(client_, target_, cut) || moved;
            }
        }
    }
    Status only() {
        auto finished = client_.takeFinished();
        EXPECT_EQ(finished.size(), 1U);
        return finished.empty() ? Status::timeout("nothing finished") : finished[0].status;
    }

    std::mt19937_64 random_{1};
    std::vector<char> remote_;
    std::vector<char> local_;
    TestAccess access_;
    StreamTarget target_{access_, kKey};
    StreamClient client_{"target", kKey};
    bool checksum_ = false;
    bool damage_ = false;
    uint64_t nextId_ = 0;
    class Owner final : public PartOwner {
        void partDone(Status /*status*/, const SegmentFailure& /*failure*/) override {}
    };
    const std::shared_ptr<PartOwner> owner_ = std::make_shared<Owner>();
    Status status_;
    std::string kept_;
};

TEST_F(StreamTest, WriteAndReadAnyShape) {
    for (const bool checksum : {false, true}) {
        checksum_ = checksum;
        for (const size_t cut : {1UL << 20, 10'007UL, 333UL}) {
            for (const OpType op : {OpType::WRITE, OpType::READ}) {
                const uint64_t size = cut < 1000 ? 20'000 : 700'000;
                client_.submit(
                    part(op, {{localAt(11), size, 0, 1, 0}}, {{remoteAt(5), size, 0, 1, 0}}));
                client_.submit(
                    part(op, {{localAt(1 << 20), 100, 300, 50, 0}},
                         {{remoteAt((2 << 20) + 9), 100, static_cast<uint64_t>(-0), 1, 1},
                          {remoteAt((3 << 20) + 4900), 100, static_cast<uint64_t>(-100), 49, 1}}));
                run(cut);
                ASSERT_TRUE(status_.ok()) << status_.message();
                auto finished = client_.takeFinished();
                ASSERT_EQ(finished.size(), 2U);
                EXPECT_TRUE(finished[0].status.ok()) << finished[0].status.message();
                EXPECT_TRUE(finished[1].status.ok()) << finished[1].status.message();
                EXPECT_EQ(std::memcmp(&local_[11], &remote_[5], size), 0);
                EXPECT_EQ(std::memcmp(&local_[1 << 20], &remote_[(2 << 20) + 9], 100), 0);
                for (size_t i = 1; i < 50; ++i) {
                    EXPECT_EQ(std::memcmp(&local_[(1 << 20) + 300 * i],
                                          &remote_[(3 << 20) + 4900 - 100 * (i - 1)], 100),
                              0);
                }
                EXPECT_EQ(client_.outstandingBytes(), 0U);
                std::shuffle(local_.begin(), local_.begin() + 2000, random_);
            }
        }
    }
}

TEST_F(StreamTest, NothingOutsideTheRegion) {
    const std::vector<char> before = remote_;
    const uint64_t half = remote_.size() / 2;
    const std::vector<MemoryRun> bad[] = {
        {{remoteAt(half - 10), 11, 0, 1, 0}},
        {{remoteAt(0) - 1, 10, 0, 1, 0}},
        {{remoteAt(0), 10, half, 2, 0}},
        {{remoteAt(100), 10, static_cast<uint64_t>(-101), 2, 0}},
        {{remoteAt(0), 10, 1ULL << 63, 3, 0}},
        {{UINT64_MAX - 5, 10, 0, 1, 0}},
        {{remoteAt(0), 10, 0, 1, 1}},
    };
    for (const auto& runs : bad) {
        uint64_t bytes = 0;
        for (const auto& run : runs) {
            bytes += run.bytes();
        }
        for (const OpType op : {OpType::WRITE, OpType::READ}) {
            client_.submit(part(op, {{localAt(0), bytes, 0, 1, 0}}, runs));
            run(100);
            ASSERT_TRUE(status_.ok());
            EXPECT_EQ(only().code(), ErrorCode::NOT_ALLOWED);
        }
    }
    EXPECT_EQ(before, remote_);
}

TEST_F(StreamTest, OldGenerationAndUnknownGrant) {
    client_.submit(part(OpType::WRITE, {{localAt(0), 10, 0, 1, 0}}, {{remoteAt(0), 10, 0, 1, 0}},
                        [](Request& request, Key&) { request.regions[0].generation = 9; }));
    run(1000);
    EXPECT_EQ(only().code(), ErrorCode::NOT_FOUND);
    client_.submit(part(OpType::READ, {{localAt(0), 10, 0, 1, 0}}, {{remoteAt(0), 10, 0, 1, 0}},
                        [](Request& request, Key& key) {
                            request.grant = 1234;
                            key = Key{66};
                        }));
    run(1000);
    EXPECT_EQ(only().code(), ErrorCode::NOT_ALLOWED);
    // The right name of the grant without its key.
    StreamClient thief("target", kKey);
    StreamTarget fresh(access_, kKey);
    thief.submit(part(OpType::READ, {{localAt(0), 10, 0, 1, 0}}, {{remoteAt(0), 10, 0, 1, 0}},
                      [](Request&, Key& key) { key = Key{66}; }));
    move(thief, fresh, 1000);
    move(fresh, thief, 1000);
    const auto finished = thief.takeFinished();
    ASSERT_EQ(finished.size(), 1U);
    EXPECT_EQ(finished[0].status.code(), ErrorCode::NOT_ALLOWED);
}

TEST_F(StreamTest, DeregisteredInTheMiddle) {
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        access_.enter(1, remote_.data(), remote_.size() / 2);
        client_.submit(
            part(op, {{localAt(0), 1 << 20, 0, 1, 0}}, {{remoteAt(0), 1 << 20, 0, 1, 0}}));
        move(client_, target_, 100'000);
        if (op == OpType::READ) {
            move(target_, client_, 100'000);
        }
        const auto region = access_.get(1);
        region->revoke();
        EXPECT_EQ(region->pins(), 0U) << "pinned while nothing moves";
        std::vector<char>& destination = op == OpType::WRITE ? remote_ : local_;
        const std::vector<char> before = destination;
        run(50'000);
        ASSERT_TRUE(status_.ok()) << status_.message();
        EXPECT_EQ(only().code(), ErrorCode::NOT_FOUND);
        if (op == OpType::WRITE) {
            EXPECT_EQ(before, destination) << "bytes arrived after the deregistration";
        }
    }
}

TEST_F(StreamTest, CancelLetsGoOfMemory) {
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        for (uint64_t i = 0; i < 3; ++i) {
            client_.submit(part(op, {{localAt(i * 1'000'000), 700'000, 0, 1, 0}},
                                {{remoteAt(0), 700'000, 0, 1, 0}}));
        }
        move(client_, target_, 5'000);
        if (op == OpType::READ) {
            move(target_, client_, 5'000);
        }
        client_.cancel(owner_.get());
        std::fill(local_.begin(), local_.end(), 'c');
        run(60'000);
        ASSERT_TRUE(status_.ok()) << status_.message();
        const auto finished = client_.takeFinished();
        EXPECT_EQ(finished.size(), 3U);
        for (const auto& one : finished) {
            EXPECT_EQ(one.status.code(), ErrorCode::CANCELED);
        }
        EXPECT_TRUE(std::all_of(local_.begin(), local_.end(), [](char c) { return c == 'c'; }));
        EXPECT_EQ(client_.outstandingBytes(), 0U);
        if (op == OpType::WRITE) {
            EXPECT_EQ(std::count(remote_.begin(), remote_.end(), 'c') < 40'000, true)
                << "the canary was sent";
        }
    }
    // The connection goes on.
    client_.submit(part(OpType::WRITE, {{localAt(0), 10, 0, 1, 0}}, {{remoteAt(0), 10, 0, 1, 0}}));
    run(1000);
    EXPECT_TRUE(only().ok());
}

TEST_F(StreamTest, DamageIsFoundWithChecksums) {
    checksum_ = true;
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        client_.submit(
            part(op, {{localAt(0), 600'000, 0, 1, 0}}, {{remoteAt(0), 600'000, 0, 1, 0}}));
        move(client_, target_, 300);
        damage_ = true;
        run(100'000);
        ASSERT_TRUE(status_.ok()) << status_.message();
        const auto finished = client_.takeFinished();
        ASSERT_EQ(finished.size(), 1U);
        EXPECT_EQ(finished[0].status.code(), ErrorCode::BACKEND);
        EXPECT_NE(finished[0].status.message().find("checksum"), std::string::npos);
        // The damage is in one of the chunks: nothing from its start on counts as moved.
        EXPECT_EQ(finished[0].failure.done % kChunkBytes, 0U);
        EXPECT_EQ(finished[0].failure.size, 600'000U);
        const auto differs =
            std::mismatch(local_.begin(), local_.begin() + 600'000, remote_.begin());
        EXPECT_LE(finished[0].failure.done, static_cast<uint64_t>(differs.first - local_.begin()));
    }
}

// A READ that has failed is still being read, and thrown away: what comes next takes nothing of
// what it said.
TEST_F(StreamTest, AFailedReadThatAlsoLosesItsConnectionCountsNoDamageAsMoved) {
    checksum_ = true;
    const uint64_t size = kChunkBytes * 5 / 2;
    // How much of the answer comes before the connection goes: the end of the damaged chunk, a part
    // of the next, the next and a part of the third.
    for (const uint64_t came : {kChunkBytes + 200, kChunkBytes * 3 / 2, kChunkBytes * 9 / 4}) {
        StreamClient client("target", kKey);
        StreamTarget target(access_, kKey);
        client.submit(
            part(OpType::READ, {{localAt(0), size, 0, 1, 0}}, {{remoteAt(0), size, 0, 1, 0}}));
        client.submit(part(OpType::READ, {{localAt(size), 1000, 0, 1, 0}},
                           {{remoteAt(size), 1000, 0, 1, 0}}));
        move(client, target, 1'000);
        damage_ = true;
        for (uint64_t all = 0; all < came; all += 10'000) {
            move(target, client, 10'000);
        }
        ASSERT_FALSE(damage_);
        ASSERT_TRUE(status_.ok()) << status_.message();
        client.fail(Status::disconnected("gone"));
        const auto finished = client.takeFinished();
        ASSERT_EQ(finished.size(), 2U);
        EXPECT_EQ(finished[0].failure.size, size);
        EXPECT_EQ(finished[0].failure.done, 0U) << "the first chunk is damaged";
        EXPECT_EQ(finished[1].failure.done, 0U) << "it had not begun";
    }
}

// The damaged chunk is behind the one that the target gave up at.
TEST_F(StreamTest, AFailedReadThatIsThenAbortedNamesTheFirstFailure) {
    checksum_ = true;
    const uint64_t size = kChunkBytes * 5 / 2;
    client_.submit(
        part(OpType::READ, {{localAt(0), size, 0, 1, 0}}, {{remoteAt(0), size, 0, 1, 0}}));
    move(client_, target_, 1'000);
    damage_ = true;
    for (uint64_t all = 0; all < kChunkBytes * 3 / 2; all += 10'000) {
        move(target_, client_, 10'000);
    }
    const memory::RegionPtr region = access_.get(1);
    ASSERT_TRUE(static_cast<bool>(region));
    region->revoke();
    run(50'000);
    ASSERT_TRUE(status_.ok()) << status_.message();
    region->restore();  // and the connection goes on
    client_.submit(part(OpType::READ, {{localAt(0), 100, 0, 1, 0}}, {{remoteAt(0), 100, 0, 1, 0}}));
    run(50'000);
    const auto finished = client_.takeFinished();
    ASSERT_EQ(finished.size(), 2U);
    EXPECT_EQ(finished[0].failure.done, 0U);
    EXPECT_NE(finished[0].status.message().find("checksum"), std::string::npos)
        << finished[0].status.message();
    EXPECT_TRUE(finished[1].status.ok()) << finished[1].status.message();
}

// A chunk is right as a whole or not at all: what came of it before the failure is not yet moved.
TEST_F(StreamTest, AChunkThatCouldNotBeCheckedDoesNotCountAsMoved) {
    checksum_ = true;
    const uint64_t size = kChunkBytes * 5 / 2;
    client_.submit(
        part(OpType::WRITE, {{localAt(0), size, 0, 1, 0}}, {{remoteAt(0), size, 0, 1, 0}}));
    for (uint64_t all = 0; all < kChunkBytes * 3 / 2; all += 10'000) {
        move(client_, target_, 10'000);
    }
    const memory::RegionPtr region = access_.get(1);
    ASSERT_TRUE(static_cast<bool>(region));
    region->revoke();
    run(50'000);
    ASSERT_TRUE(status_.ok()) << status_.message();
    const auto finished = client_.takeFinished();
    ASSERT_EQ(finished.size(), 1U);
    EXPECT_EQ(finished[0].status.code(), ErrorCode::NOT_FOUND) << finished[0].status.message();
    EXPECT_EQ(finished[0].failure.done, kChunkBytes);
}

TEST_F(StreamTest, MemoryThatIsNotThereFailsWithChecksumsToo) {
    checksum_ = true;
    const uint64_t gone = reinterpret_cast<uint64_t>(
        mmap(nullptr, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    access_.enter(2, reinterpret_cast<void*>(gone), 8192, 5);
    client_.submit(part(OpType::READ, {{localAt(0), 8192, 0, 1, 0}}, {{gone, 8192, 0, 1, 1}}));
    client_.submit(part(OpType::WRITE, {{gone, 8192, 0, 1, 0}}, {{remoteAt(0), 8192, 0, 1, 0}}));
    run(100'000);
    ASSERT_TRUE(status_.ok()) << status_.message();
    const auto finished = client_.takeFinished();
    ASSERT_EQ(finished.size(), 2U);
    EXPECT_EQ(finished[0].status.systemErrno(), EFAULT) << finished[0].status.message();
    EXPECT_EQ(finished[1].status.systemErrno(), EFAULT) << finished[1].status.message();
    munmap(reinterpret_cast<void*>(gone), 8192);
}

TEST_F(StreamTest, FailEndsAll) {
    for (int i = 0; i < 5; ++i) {
        client_.submit(part(i % 2 == 0 ? OpType::WRITE : OpType::READ,
                            {{localAt(0), 600'000, 0, 1, 0}}, {{remoteAt(0), 600'000, 0, 1, 0}}));
    }
    move(client_, target_, 700'000);
    client_.fail(Status::disconnected("gone"));
    EXPECT_EQ(client_.takeFinished().size(), 5U);
    EXPECT_EQ(client_.outstandingBytes(), 0U);
    EXPECT_FALSE(client_.wantsOutput());
}

// Each of its own transfer, so that one connection cannot make the target keep any number.
TEST(StreamTarget, TakesSoManyGrantsAndNoMore) {
    class AnyGrant final : public TestAccess {
      public:
        std::optional<Key> grantKey(GrantId grant) override {
            const auto found = keys.find(grant);
            return found == keys.end() ? std::nullopt : std::optional(found->second);
        }
        std::map<GrantId, Key> keys;
    };
    AnyGrant access;
    StreamTarget target(access, kKey);
    const auto prove = [&](size_t number, bool right) {
        const Key key{static_cast<uint8_t>(number), static_cast<uint8_t>(number >> 8), 1};
        access.keys[grantId(key)] = key;
        base::ByteWriter out;
        const size_t begin = beginFrame(out, FrameType::GRANT);
        GrantProof{grantId(key), grantProof(right ? key : Key{}, kKey)}.encode(out);
        endFrame(out, begin);
        iovec in[8];
        EXPECT_GE(target.inputSpace(in, 8), 1U);
        std::memcpy(in[0].iov_base, out.bytes().data(), out.size());
        return target.received(out.size());
    };
    for (size_t i = 0; i < StreamTarget::kMaxGrants; ++i) {
        ASSERT_TRUE(prove(i, true).ok()) << i;
    }
    EXPECT_TRUE(prove(StreamTarget::kMaxGrants, false).ok()) << "what proves nothing is not kept";
    EXPECT_EQ(prove(StreamTarget::kMaxGrants, true).code(), ErrorCode::INVALID_PARAM);
}

TEST_F(StreamTest, ForeignRepliesAreRefused) {
    Reply reply;
    reply.id = 99;
    base::ByteWriter out;
    reply.encode(out);
    iovec in[4];
    ASSERT_GE(client_.inputSpace(in, 4), 1U);
    std::memcpy(in[0].iov_base, out.bytes().data(), out.size());
    EXPECT_FALSE(client_.received(out.size()).ok());
}

}  // namespace
}  // namespace nixl::peer
