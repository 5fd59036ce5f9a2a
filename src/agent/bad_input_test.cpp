// Bad input to the agent: each mistake is a typed error that names the object, the value and what
// was expected, and harms nothing else.
#include <array>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/agents.h"

namespace nixl {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testkit::errorOf;
using testkit::memoryConfig;
using testkit::objectsConfig;

constexpr uint64_t kSize = 4096;

std::string num(uint64_t value) {
    return std::to_string(value);
}

std::string hex(uint64_t value) {
    char text[32];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

class BadInputTest : public testing::Test {
  protected:
    BadInputTest() {
        a_.registerMemory(RegistrationList{{near_.data(), kSize}}, {});
        b_.registerMemory(RegistrationList{{far_.data(), kSize}}, {});
        a_.addPeer(b_.metadata());
    }
    uint64_t near(uint64_t offset = 0) const {
        return reinterpret_cast<uint64_t>(near_.data()) + offset;
    }
    uint64_t far(uint64_t offset = 0) const {
        return reinterpret_cast<uint64_t>(far_.data()) + offset;
    }
    TransferHandle prepare(const DescriptorList& local, const DescriptorList& remote) {
        return a_.prepareTransfer(OpType::WRITE, local, remote, "b");
    }
    std::string refusal(ErrorCode code, const DescriptorList& local, const DescriptorList& remote) {
        return errorOf(code, [&] { prepare(local, remote); });
    }
    // Whatever was refused, a good transfer goes on working.
    void expectWorking() {
        near_[1] = static_cast<char>(near_[1] + 1);
        TransferHandle good = prepare({{near(), 64}}, {{far(), 64}});
        a_.postTransfer(good);
        EXPECT_EQ(a_.waitTransfer(good), XferState::DONE);
        EXPECT_EQ(near_[1], far_[1]);
    }

    std::vector<char> near_ = std::vector<char>(3 * kSize);
    std::vector<char> far_ = std::vector<char>(3 * kSize);
    Agent a_{"a", memoryConfig()};
    Agent b_{"b", memoryConfig()};
};

TEST_F(BadInputTest, UnregisteredRangeNamesIndexAndRange) {
    const std::string local =
        refusal(ErrorCode::NOT_FOUND, {{near(), 8}, {near(2 * kSize), 16}, {near(8), 8}},
                {{far(), 8}, {far(16), 16}, {far(8), 8}});
    EXPECT_THAT(local, AllOf(HasSubstr("descriptor 1"), HasSubstr(hex(near(2 * kSize))),
                             HasSubstr("16"), HasSubstr("MEMORY")));
    const std::string remote =
        refusal(ErrorCode::NOT_FOUND, {{near(), 8}, {near(16), 16}, {near(32), 8}},
                {{far(), 8}, {far(8), 16}, {far(2 * kSize + 1), 8}});
    EXPECT_THAT(remote, AllOf(HasSubstr("descriptor 2"), HasSubstr(hex(far(2 * kSize + 1))),
                              HasSubstr("\"b\"")));
    expectWorking();
}

TEST_F(BadInputTest, OneByteTooMany) {
    prepare({{near(kSize - 8), 8}}, {{far(kSize - 8), 8}});
    EXPECT_THAT(refusal(ErrorCode::NOT_FOUND, {{near(kSize - 8), 9}}, {{far(), 9}}),
                HasSubstr("descriptor 0"));
    EXPECT_THAT(refusal(ErrorCode::NOT_FOUND, {{near(), 9}}, {{far(kSize - 8), 9}}),
                HasSubstr("descriptor 0"));
    refusal(ErrorCode::NOT_FOUND, {{near() - 1, 9}}, {{far(), 9}});
    refusal(ErrorCode::NOT_FOUND, {{near(), 8, 1}}, {{far(), 8}});  // another device
    expectWorking();
}

TEST_F(BadInputTest, LengthsThatOverflow) {
    constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
    for (const uint64_t size : {kMost, kMost - 1, kMost - near() + 1, kMost / 2 + 1}) {
        const std::string text =
            errorOf(size > kMost - near() ? ErrorCode::INVALID_PARAM : ErrorCode::NOT_FOUND,
                    [&] { prepare({{near(), size}}, {{far(), size}}); });
        EXPECT_THAT(text, AllOf(HasSubstr("descriptor 0"), HasSubstr(num(size))));
    }
    EXPECT_THAT(
        errorOf(ErrorCode::INVALID_PARAM,
                [&] { a_.registerMemory(RegistrationList{{near(), 8}, {near(), kMost}}, {}); }),
        AllOf(HasSubstr("descriptor 1"), HasSubstr(num(kMost))));
    // A run whose later descriptors wrap around.
    DescriptorList wrapping;
    wrapping.appendRun({near(), 8, 0, kMost / 4, 8});
    DescriptorList eight;
    eight.appendRun({far(), 8, 0, 8, 8});
    errorOf(ErrorCode::NOT_FOUND, [&] { prepare(wrapping, eight); });
    expectWorking();
}

TEST_F(BadInputTest, MismatchedCountsAndLengths) {
    EXPECT_THAT(refusal(ErrorCode::INVALID_PARAM, {{near(), 8}, {near(8), 8}, {near(16), 8}},
                        {{far(), 8}, {far(8), 8}}),
                AllOf(HasSubstr("3"), HasSubstr("2")));
    EXPECT_THAT(
        refusal(ErrorCode::INVALID_PARAM, {{near(), 8}, {near(8), 8}}, {{far(), 8}, {far(8), 9}}),
        AllOf(HasSubstr("descriptor 1"), HasSubstr("8"), HasSubstr("9")));
    // One to many, of another total.
    EXPECT_THAT(refusal(ErrorCode::INVALID_PARAM, {{near(), 17}}, {{far(), 8}, {far(8), 8}}),
                AllOf(HasSubstr("17"), HasSubstr("16")));
    refusal(ErrorCode::INVALID_PARAM, DescriptorList(), {{far(), 8}});
    expectWorking();
}

TEST_F(BadInputTest, IndicesOutOfRangeOrNegative) {
    PreparedList local = a_.prepareList("", {{near(), 8}, {near(8), 8}});
    PreparedList remote = a_.prepareList("b", {{far(), 8}, {far(8), 8}, {far(16), 8}});
    const auto wide = [&](std::vector<int64_t> left, std::vector<int64_t> right) {
        a_.prepareTransfer(OpType::WRITE, local.id(), left, remote.id(), right);
    };
    const auto narrow = [&](std::vector<int32_t> left, std::vector<int32_t> right) {
        a_.prepareTransfer(OpType::WRITE, local.id(), left, remote.id(), right);
    };
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { wide({0, 2}, {0, 1}); }),
                AllOf(HasSubstr("2"), HasSubstr("local")));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { wide({0, 1}, {0, 3}); }),
                AllOf(HasSubstr("3"), HasSubstr("remote")));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { narrow({-1}, {0}); }), HasSubstr("-1"));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { wide({0}, {INT64_MIN}); }),
                HasSubstr("-9223372036854775808"));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { narrow({INT32_MAX}, {0}); }),
                HasSubstr("2147483647"));
    EXPECT_THAT(errorOf(ErrorCode::MISMATCH, [&] { wide({0, 1}, {0}); }),
                AllOf(HasSubstr("2"), HasSubstr("1")));
    EXPECT_THAT(errorOf(ErrorCode::MISMATCH, [&] { wide({}, {0}); }), HasSubstr("0"));
    // All of both, which differ in number.
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { wide({}, {}); }),
                AllOf(HasSubstr("2"), HasSubstr("3")));
    expectWorking();
}

TEST_F(BadInputTest, WrongMemoryTypes) {
    EXPECT_THAT(errorOf(ErrorCode::NOT_SUPPORTED,
                        [&] { a_.registerMemory(RegistrationList{{0, 8, 1, MemType::FILE}}, {}); }),
                AllOf(HasSubstr("FILE"), HasSubstr("MEMORY")));
    EXPECT_THAT(errorOf(ErrorCode::NOT_SUPPORTED,
                        [&] {
                            a_.registerMemory(RegistrationList{{near(), 8, 0, MemType::VRAM}},
                                              {"MEMORY"});
                        }),
                AllOf(HasSubstr("VRAM"), HasSubstr("MEMORY")));
    EXPECT_THAT(refusal(ErrorCode::NOT_SUPPORTED, {{near(), 8}}, {{0, 8, 3, MemType::FILE}}),
                HasSubstr("FILE"));
    EXPECT_THAT(refusal(ErrorCode::NOT_SUPPORTED, {{0, 8, 3, MemType::OBJECT}}, {{far(), 8}}),
                HasSubstr("OBJ"));
    EXPECT_THAT(
        errorOf(ErrorCode::MISMATCH,
                [&] { const DescriptorList mixed{{near(), 8}, {near(), 8, 0, MemType::VRAM}}; }),
        AllOf(HasSubstr("1"), HasSubstr("VRAM")));
    expectWorking();
}

TEST_F(BadInputTest, StorageIsOfThisAgentAndOnTheRemoteSide) {
    Agent c("c", objectsConfig());
    c.registerMemory(RegistrationList{{near_.data(), kSize}}, {});
    c.registerMemory(RegistrationList{{0, kSize, 0, MemType::OBJECT, "key"}}, {});
    c.addPeer(b_.metadata());
    EXPECT_THAT(errorOf(ErrorCode::NOT_SUPPORTED,
                        [&] {
                            c.prepareTransfer(OpType::WRITE, {{near(), 8}},
                                              {{0, 8, 0, MemType::OBJECT}}, "b");
                        }),
                HasSubstr("OBJECTS"));
    const DescriptorList object{{0, 8, 0, MemType::OBJECT}};
    EXPECT_THAT(errorOf(ErrorCode::NOT_SUPPORTED,
                        [&] { c.prepareTransfer(OpType::WRITE, object, {{far(), 8}}, "b"); }),
                HasSubstr("OBJ"));
    EXPECT_THAT(errorOf(ErrorCode::NOT_SUPPORTED,
                        [&] { c.prepareTransfer(OpType::WRITE, object, object, "c"); }),
                HasSubstr("the local side must be memory, not OBJ"));
    TransferHandle good =
        c.prepareTransfer(OpType::WRITE, {{near(), 8}}, {{0, 8, 0, MemType::OBJECT}}, "c");
    c.postTransfer(good);
    EXPECT_EQ(c.waitTransfer(good), XferState::DONE);
}

TEST_F(BadInputTest, UnknownBackends) {
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { a_.createBackend("MEMROY"); }),
                AllOf(HasSubstr("MEMROY"), HasSubstr("did you mean MEMORY?")));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { a_.createBackend(""); }),
                HasSubstr("plugin name \"\""));
    const RegistrationList list{{near_.data() + kSize, kSize}};
    for (const auto& call : std::vector<std::function<void()>>{
             [&] { a_.registerMemory(list, {"NOSUCH"}); },
             [&] { a_.deregisterMemory(list, {"NOSUCH"}); },
             [&] { a_.queryMemory(list, "NOSUCH"); },
             [&] { a_.prepareTransfer(OpType::READ, {{near(), 8}}, {{far(), 8}}, "b", "NOSUCH"); },
             [&] { a_.prepareList("", {{near(), 8}}, {"NOSUCH"}); },
             [&] { a_.backendParameters("NOSUCH"); }, [&] { a_.backendCapabilities("NOSUCH"); },
             [&] { a_.partialMetadata(DescriptorList(), true, {"NOSUCH"}); },
             [&] { a_.connect("b", {"NOSUCH"}); }, [&] { a_.sendNotification("b", "x", "NOSUCH"); },
             [&] { a_.listStorage("NOSUCH", ""); }, [&] { a_.removeStorage("NOSUCH", "x"); }}) {
        EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, call),
                    AllOf(HasSubstr("NOSUCH"), HasSubstr("MEMORY")));
    }
    EXPECT_THAT(errorOf(ErrorCode::NOT_ALLOWED, [&] { a_.createBackend("memory"); }),
                AllOf(HasSubstr("MEMORY"), HasSubstr("already")));
    expectWorking();
}

TEST_F(BadInputTest, ConfiguredBackendsThatDoNotExist) {
    AgentConfig config = memoryConfig();
    config.backends = {"NOSUCH", "MEMORY"};
    EXPECT_EQ(Agent("c", config).backends(), std::vector<std::string>{"MEMORY"});
    config.backends = {"NOSUCH", "NEITHER"};
    Agent none("c", config);
    EXPECT_TRUE(none.backends().empty());
    EXPECT_EQ(none.createBackend("MEMORY"), "MEMORY");
}

TEST_F(BadInputTest, IllTypedParameters) {
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM,
                        [&] { const Agent agent("c", memoryConfig({{"max_pending", "few"}})); }),
                HasSubstr("MEMORY: parameter max_pending=\"few\": must be an integer of at least"));
    AgentConfig plain = memoryConfig();
    plain.backends.clear();
    Agent c("c", plain);
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM,
                        [&] { c.createBackend("MEMORY", {{"inline_limit", "-1"}}); }),
                HasSubstr("inline_limit=\"-1\": must be a size"));
    EXPECT_EQ(c.createBackend("MEMORY", {{"active", "true"}}), "MEMORY");  // unknown: a warning
}

TEST_F(BadInputTest, HandlesAfterReleaseAndOfOthers) {
    TransferHandle handle = prepare({{near(), 8}}, {{far(), 8}});
    PreparedList list = a_.prepareList("", {{near(), 8}});
    const HandleId id = handle.id();
    const HandleId list_id = list.id();
    const auto expect_unknown = [&](Agent& agent, HandleId bad) {
        const std::vector<std::function<void()>> calls = {
            [&] { agent.postTransfer(bad); },
            [&] { agent.checkTransfer(bad); },
            [&] { agent.transferState(bad); },
            [&] { agent.waitTransfer(bad, std::chrono::seconds(1)); },
            [&] { agent.waitAny(std::array{bad}, std::chrono::seconds(1)); },
            [&] { agent.cancelTransfer(bad); },
            [&] { agent.releaseTransfer(bad); },
            [&] { static_cast<void>(agent.transferError(bad).ok()); },
            [&] { agent.transferFailures(bad); },
            [&] { agent.transferTelemetry(bad); },
            [&] { agent.explainTransfer(bad); },
            [&] { agent.estimateTransfer(bad); },
            [&] { agent.transferBackend(bad); }};
        for (const auto& call : calls) {
            EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, call),
                        AllOf(HasSubstr(num(bad)), HasSubstr("released")));
        }
    };
    for (const HandleId bad :
         {HandleId{0}, list_id, id + 1, id ^ (HandleId{1} << 40), ~HandleId{0}}) {
        if (bad != id) {
            expect_unknown(a_, bad);
        }
    }
    expect_unknown(b_, id);
    a_.releaseTransfer(id);
    expect_unknown(a_, id);
    handle.detach();
    TransferHandle other = prepare({{near(), 8}}, {{far(), 8}});
    a_.releaseTransfer(other);
    a_.releaseTransfer(other);  // through the owning handle twice is harmless
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { a_.checkTransfer(other); }),
                HasSubstr("released"));
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM,
                        [&] {
                            a_.prepareTransfer(OpType::READ, list_id, std::span<const int64_t>(),
                                               list_id + 1, std::span<const int64_t>());
                        }),
                HasSubstr("remote"));
    a_.releaseList(list);
    a_.releaseList(list);
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { a_.releaseList(list_id); }),
                HasSubstr(num(list_id)));
    expectWorking();
}

TEST_F(BadInputTest, RandomHandlesNeverCrash) {
    TransferHandle handle = prepare({{near(), 8}}, {{far(), 8}});
    std::mt19937_64 random(5);
    for (int i = 0; i < 20'000; ++i) {
        const HandleId bad = i % 2 == 0 ? random() : handle.id() ^ (1ULL << (random() % 64));
        try {
            a_.checkTransfer(bad);
            ADD_FAILURE() << "handle " << bad << " was taken";
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ErrorCode::INVALID_PARAM);
        }
    }
    a_.postTransfer(handle);
    EXPECT_EQ(a_.waitTransfer(handle), XferState::DONE);
}

TEST_F(BadInputTest, UnknownPeers) {
    const std::vector<std::function<void()>> calls = {
        [&] { a_.prepareTransfer(OpType::READ, {{near(), 8}}, {{far(), 8}}, "nobody"); },
        [&] { a_.prepareList("nobody", {{far(), 8}}); }, [&] { a_.connect("nobody"); },
        [&] { a_.sendNotification("nobody", "x"); }, [&] { a_.removePeer("nobody"); }};
    for (const auto& call : calls) {
        EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, call), HasSubstr("nobody"));
    }
    EXPECT_FALSE(a_.hasPeer("nobody"));
    expectWorking();
}

TEST_F(BadInputTest, Registering) {
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM,
                        [&] { a_.registerMemory(RegistrationList{{near(), 8}, {0, 8}}, {}); }),
                AllOf(HasSubstr("descriptor 1"), HasSubstr("null")));
    const RegistrationList never{{near(kSize), kSize}};
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { a_.deregisterMemory(never, {}); }),
                AllOf(HasSubstr("descriptor 0"), HasSubstr(hex(near(kSize)))));
    a_.registerMemory(never, {});
    a_.deregisterMemory(never, {});
    errorOf(ErrorCode::NOT_FOUND, [&] { a_.deregisterMemory(never, {}); });
    // Part of a region is no region.
    errorOf(ErrorCode::NOT_FOUND,
            [&] { a_.deregisterMemory(RegistrationList{{near(), kSize / 2}}, {}); });
    expectWorking();
}

TEST_F(BadInputTest, RegisteringNothingIsNothing) {
    const std::string before = a_.metadata();
    const RegistrationList nothing{{near(), 0}, {0, 0}};
    a_.registerMemory(nothing, {});
    EXPECT_EQ(a_.metadata(), before);
    a_.deregisterMemory(nothing, {});
    a_.deregisterMemory(nothing, {});
    // What does hold memory is registered, and errors name its place in the whole list.
    const RegistrationList mixed{{near(kSize), 0}, {near(kSize), 64}};
    a_.registerMemory(mixed, {});
    a_.deregisterMemory(mixed, {});
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { a_.deregisterMemory(mixed, {}); }),
                HasSubstr("descriptor 1"));
    errorOf(ErrorCode::NOT_FOUND,
            [&] { prepare({{near(kSize), 0}, {near(kSize), 8}}, {{far(), 8}, {far(), 8}}); });
    expectWorking();
}

TEST_F(BadInputTest, DeregisteredMemoryIsRefusedAtPost) {
    TransferHandle local = prepare({{near(), 8}}, {{far(), 8}});
    a_.deregisterMemory(RegistrationList{{near_.data(), kSize}}, {});
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { a_.postTransfer(local); }),
                AllOf(HasSubstr("local"), HasSubstr("deregistered")));
    a_.registerMemory(RegistrationList{{near_.data(), kSize}}, {});
    expectWorking();
}

TEST_F(BadInputTest, StatesOfATransfer) {
    TransferHandle handle = prepare({{near(), 8}}, {{far(), 8}});
    errorOf(ErrorCode::NOT_POSTED, [&] { a_.checkTransfer(handle); });
    errorOf(ErrorCode::NOT_POSTED, [&] { a_.transferTelemetry(handle.id()); });
    a_.cancelTransfer(handle.id());  // nothing is posted: nothing happens

    Agent slow("slow", memoryConfig({{"delay", "200ms"}}));
    slow.registerMemory(RegistrationList{{near_.data(), kSize}}, {});
    TransferHandle pending =
        slow.prepareTransfer(OpType::WRITE, {{near(), 8}}, {{near(8), 8}}, "slow");
    EXPECT_EQ(slow.postTransfer(pending), XferState::PENDING);
    EXPECT_THAT(errorOf(ErrorCode::REPOST_ACTIVE, [&] { slow.postTransfer(pending); }),
                HasSubstr("in progress"));
    errorOf(ErrorCode::NO_TELEMETRY, [&] { slow.transferTelemetry(pending.id()); });
    errorOf(ErrorCode::TIMEOUT, [&] { slow.waitTransfer(pending, std::chrono::milliseconds(5)); });
    EXPECT_EQ(slow.waitTransfer(pending), XferState::DONE)
        << "the wait's end is not the transfer's";
    EXPECT_EQ(slow.transferTelemetry(pending.id()).totalBytes, 8U);
}

TEST_F(BadInputTest, AFailingTransferNeverShowsOnItsNeighbour) {
    Agent faulty("faulty", memoryConfig({{"nixl_fault", "seed=1,fail=2"}}));
    faulty.registerMemory(RegistrationList{{near_.data(), kSize}}, {});
    std::vector<TransferHandle> handles;
    for (uint64_t i = 0; i < 20; ++i) {
        handles.push_back(faulty.prepareTransfer(OpType::WRITE, {{near(), 8}, {near(16), 8}},
                                                 {{near(64), 8}, {near(96), 8}}, "faulty"));
        faulty.postTransfer(handles.back());
    }
    int failed = 0;
    for (TransferHandle& handle : handles) {
        try {
            EXPECT_EQ(faulty.waitTransfer(handle), XferState::DONE);
            EXPECT_TRUE(faulty.transferFailures(handle.id()).empty());
            EXPECT_TRUE(faulty.transferError(handle.id()).ok());
        } catch (const Error& error) {
            ++failed;
            EXPECT_EQ(error.code(), ErrorCode::BACKEND);
            EXPECT_THAT(error.what(), HasSubstr("injected fault"));
            EXPECT_EQ(faulty.transferFailures(handle.id()).size(), 2U);
        }
    }
    EXPECT_EQ(failed, 10);
}

TEST_F(BadInputTest, NamesOfAgents) {
    EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { const Agent agent("", memoryConfig()); }),
                HasSubstr("name"));
    errorOf(ErrorCode::INVALID_PARAM,
            [&] { const Agent agent(std::string(100'000, 'x'), memoryConfig()); });
}

TEST_F(BadInputTest, DamagedMetadataIsRefused) {
    const std::string good = b_.metadata();
    Agent c("c", memoryConfig());
    for (size_t size = 0; size < good.size(); ++size) {
        EXPECT_THAT(errorOf(ErrorCode::INVALID_PARAM, [&] { c.addPeer(good.substr(0, size)); }),
                    Not(HasSubstr("unknown")));
    }
    std::mt19937_64 random(9);
    for (int i = 0; i < 2000; ++i) {
        std::string bad = good;
        char& flipped = bad[random() % bad.size()];
        flipped = static_cast<char>(static_cast<unsigned char>(flipped) ^ (1U << (random() % 8)));
        try {
            c.addPeer(bad);
            ADD_FAILURE() << "damaged metadata was taken";
        } catch (const Error& error) {
            EXPECT_FALSE(std::string(error.what()).empty());
        }
    }
    EXPECT_TRUE(c.peers().empty());
    EXPECT_EQ(c.addPeer(good), "b");
}

}  // namespace
}  // namespace nixl
