// Conformance through an agent: what a user sees of the backend.
#include <chrono>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/agent.h"

#include "backend/plugins.h"
#include "testing/harness.h"

namespace nixl::testkit {
namespace {

using std::chrono::milliseconds;

// An agent with the subject's backend; null and a failed test where it cannot be created.
std::unique_ptr<Agent> makeAgent(Bench& bench, const std::string& name, bool slow = false) {
    const Subject& subject = bench.subject();
    const PluginTable* const table = bench.table();
    if (table == nullptr) {
        return nullptr;
    }
    if (subject.table != nullptr) {
        const Status added = backend::PluginRegistry::instance().add(*subject.table);
        EXPECT_TRUE(added.ok()) << added.message();
    }
    AgentConfig config;
    config.backends = {table->name};
    BackendParams& params = config.backendParams[table->name];
    params = subject.parameters;
    if (slow) {
        for (const auto& [key, value] : subject.slowParameters) {
            params[key] = value;
        }
    }
    if (subject.fault.any()) {
        params["nixl_fault"] = subject.fault.text();
    }
    try {
        return std::make_unique<Agent>(name, config);
    } catch (const Error& error) {
        ADD_FAILURE() << error.what();
        return nullptr;
    }
}

RegistrationList registrationOf(const Buffer& buffer, uint64_t device) {
    const MemoryRegion region = buffer.region();
    RegistrationList list(region.type);
    list.append(region.address, region.size, device, std::string(region.metadata));
    return list;
}

RegistrationList registrationOf(const Buffer& buffer) {
    return registrationOf(buffer, buffer.region().deviceId);
}

// Two buffers and the agents that hold them: one and the same for storage.
class Ends {
  public:
    Ends(Bench& bench, uint64_t size, bool slow)
        : local(bench.subject().local(size)),
          remote(bench.subject().remote(size)),
          here(makeAgent(bench, "here", slow)) {
        if (bench.subject().kind == Subject::NETWORK) {
            there = makeAgent(bench, "there", slow);
        }
        if (here == nullptr || (bench.subject().kind == Subject::NETWORK && there == nullptr)) {
            return;
        }
        here->registerMemory(registrationOf(*local), {});
        target().registerMemory(registrationOf(*remote), {});
        if (there != nullptr) {
            here->addPeer(there->metadata());
        }
        ok = true;
    }
    Agent& target() { return there != nullptr ? *there : *here; }
    TransferHandle prepare(OpType op, uint64_t offset, uint64_t size) {
        return here->prepareTransfer(op, part(*local, offset, size), part(*remote, offset, size),
                                     target().name());
    }
    static DescriptorList part(const Buffer& buffer, uint64_t offset, uint64_t size) {
        const MemoryRegion region = buffer.region();
        DescriptorList list(region.type);
        list.append(region.address + offset, size, region.deviceId);
        return list;
    }

    // The buffers outlive the agents.
    const std::unique_ptr<Buffer> local;
    const std::unique_ptr<Buffer> remote;
    std::unique_ptr<Agent> here;
    std::unique_ptr<Agent> there;
    bool ok = false;
};

// Notifications that arrive within a while after the transfer has ended.
std::vector<Notification> arrived(Agent& agent) {
    agent.waitNotifications(kPatience);
    std::vector<Notification> all = agent.takeNotifications();
    std::this_thread::sleep_for(milliseconds(5));  // sleeps: for one too many
    for (Notification& late : agent.takeNotifications()) {
        all.push_back(std::move(late));
    }
    return all;
}

void throughAnAgent(Bench& bench) {
    const uint64_t size = bench.rounded(300'000);
    Ends ends(bench, size, false);
    ASSERT_TRUE(ends.ok);
    TransferHandle write = ends.prepare(OpType::WRITE, 0, size);
    TransferHandle read = ends.prepare(OpType::READ, 0, size);
    for (uint64_t round = 1; round <= 5; ++round) {
        ends.local->fill(round);
        ends.here->postTransfer(write, "round " + std::to_string(round));
        ASSERT_EQ(ends.here->waitTransfer(write, kPatience), XferState::DONE);
        EXPECT_TRUE(ends.remote->bytes(0, size) == pattern(round, 0, size));
        const auto notes = arrived(ends.target());
        ASSERT_EQ(notes.size(), 1U);
        EXPECT_EQ(notes[0].from, "here");
        EXPECT_EQ(notes[0].message, "round " + std::to_string(round));
        ends.local->clear();
        ends.here->postTransfer(read);
        ASSERT_EQ(ends.here->waitTransfer(read, kPatience), XferState::DONE);
        EXPECT_TRUE(ends.local->bytes(0, size) == pattern(round, 0, size));
    }
    EXPECT_EQ(ends.here->transferTelemetry(read.id()).totalBytes, size);
    EXPECT_FALSE(ends.here->explainTransfer(read.id()).backend.empty());
}

// Deregistering either waits until the transfer is over or is refused; never is memory touched
// that its owner has taken back.
void deregisterWhilePending(Bench& bench) {
    const uint64_t size = bench.rounded(bench.subject().largest);
    Ends ends(bench, size, true);
    ASSERT_TRUE(ends.ok);
    ends.remote->fill(1);
    TransferHandle read = ends.prepare(OpType::READ, 0, size);
    ends.here->postTransfer(read);
    try {
        ends.here->deregisterMemory(registrationOf(*ends.local), {});
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::TIMEOUT) << error.what();
        return;
    }
    // Over, though the state may show it a moment later.
    EXPECT_EQ(ends.here->waitTransfer(read, kPatience), XferState::DONE);
    ends.local->clear();
    std::this_thread::sleep_for(milliseconds(20));  // sleeps: for a byte that came late
    EXPECT_TRUE(ends.local->bytes(0, size) == std::vector<uint8_t>(size));
    try {
        ends.here->postTransfer(read);
        ADD_FAILURE() << "posted with deregistered memory";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::NOT_FOUND) << error.what();
    }
}

void agentEndsWithWorkInFlight(Bench& bench) {
    const uint64_t part = bench.rounded(4 << 20);
    for (int round = 0; round < 3; ++round) {
        Ends ends(bench, 4 * part, true);
        ASSERT_TRUE(ends.ok);
        ends.remote->fill(1);
        std::vector<TransferHandle> handles;
        for (uint64_t i = 0; i < 4; ++i) {
            handles.push_back(ends.prepare(OpType::READ, i * part, part));
            ends.here->postTransfer(handles.back());
        }
        if (round == 1) {
            handles.clear();
        }
        ends.here.reset();
        ends.local->clear();
        std::this_thread::sleep_for(milliseconds(20));  // sleeps: for a byte that came late
        EXPECT_TRUE(ends.local->bytes(0, 4 * part) == std::vector<uint8_t>(4 * part));
    }
}

// One of three buffers is too short: only its descriptor failed, the others' bytes are there.
void failuresNameDescriptors(Bench& bench) {
    const uint64_t size = bench.rounded(50'000);
    const uint64_t left = bench.rounded(20'000);
    const auto local = bench.subject().local(3 * size);
    std::vector<std::unique_ptr<Buffer>> buffers;
    for (uint64_t i = 0; i < 3; ++i) {
        buffers.push_back(bench.subject().remote(size));
        buffers.back()->fill(i);
    }
    if (!buffers[1]->truncate(left)) {
        GTEST_SKIP() << "the buffer cannot be made shorter";
    }
    const auto agent = makeAgent(bench, "here");
    ASSERT_NE(agent, nullptr);
    agent->registerMemory(registrationOf(*local), {});
    DescriptorList near(local->region().type);
    DescriptorList far(buffers[0]->region().type);
    for (uint64_t i = 0; i < 3; ++i) {
        const MemoryRegion region = buffers[i]->region();
        // What is found by name needs a device of its own to be told apart.
        const uint64_t device = region.metadata.empty() ? region.deviceId : i + 1;
        agent->registerMemory(registrationOf(*buffers[i], device), {});
        near.append(local->region().address + i * size, size, local->region().deviceId);
        far.append(region.address, size, device);
    }
    TransferHandle read = agent->prepareTransfer(OpType::READ, near, far, "here");
    agent->postTransfer(read);
    try {
        agent->waitTransfer(read, kPatience);
        ADD_FAILURE() << "a short read was DONE";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::BACKEND) << error.what();
        EXPECT_EQ(error.descriptorIndex(), 1) << error.what();
    }
    const auto failed = agent->transferFailures(read.id());
    ASSERT_EQ(failed.size(), 1U);
    EXPECT_EQ(failed[0].index, 1U);
    EXPECT_EQ(failed[0].bytes, left);
    EXPECT_TRUE(local->bytes(0, size) == pattern(0, 0, size));
    EXPECT_TRUE(local->bytes(size, left) == pattern(1, 0, left));
    EXPECT_TRUE(local->bytes(2 * size, size) == pattern(2, 0, size));
}

}  // namespace

std::vector<Check> agentChecks() {
    using For = Check::For;
    return {{"ThroughAnAgent", For::ALL, throughAnAgent},
            {"DeregisterWhilePending", For::ALL, deregisterWhilePending},
            {"AgentEndsWithWorkInFlight", For::ALL, agentEndsWithWorkInFlight},
            {"FailuresNameDescriptors", For::STORAGE, failuresNameDescriptors}};
}

}  // namespace nixl::testkit
