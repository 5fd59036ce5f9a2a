// Conformance: creating, registering, peers, notifications, and leaving nothing behind.
#include <array>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/plugins.h"
#include "testing/harness.h"
#include "testing/until.h"

namespace nixl::testkit {
namespace {

using ::testing::HasSubstr;

void tellsWhatItCan(Bench& bench) {
    Backend& backend = bench.side()->backend();
    const PluginTable* const table = bench.table();
    EXPECT_STRCASEEQ(backend.info().name.c_str(), table->name);
    EXPECT_EQ(backend.info().storage, bench.subject().kind == Subject::STORAGE);
    EXPECT_FALSE(backend.getSupportedMems().empty());
    for (const MemType type : backend.getSupportedMems()) {
        const MemType* const end = table->memoryTypes + table->memoryTypeCount;
        EXPECT_NE(std::find(table->memoryTypes, end, type), end)
            << memTypeName(type) << " is not in the plugin's table";
    }
    EXPECT_TRUE(backend.supportsLocal());
    EXPECT_EQ(backend.supportsRemote(), !backend.info().storage);
    EXPECT_EQ(backend.supportsNotif(), !backend.info().storage);
    EXPECT_NE(table->help, nullptr);
    EXPECT_NE(table->version, nullptr);
    for (size_t i = 0; i < table->parameterCount; ++i) {
        EXPECT_NE(table->parameters[i].help, nullptr) << table->parameters[i].name;
    }
}

void refusesIllTypedParameters(Bench& bench) {
    const PluginTable* const table = bench.table();
    TestServices services;
    for (size_t i = 0; i < table->parameterCount; ++i) {
        const ParameterSpec& spec = table->parameters[i];
        if (spec.type == ParameterType::STRING || spec.type == ParameterType::SECRET) {
            continue;  // any text is one
        }
        std::map<std::string, std::string> given = bench.subject().parameters;
        given[spec.name] = "no such value";
        const auto created = backend::createBackend(*table, given, services);
        ASSERT_FALSE(created.ok()) << spec.name;
        EXPECT_EQ(created.status().code(), ErrorCode::INVALID_PARAM);
        EXPECT_THAT(created.status().message(),
                    HasSubstr(std::string(spec.name) + "=\"no such value\""));
    }
}

void warnsOnceOfUnknownParameters(Bench& bench) {
    TestServices services;
    std::map<std::string, std::string> given = bench.subject().parameters;
    given["active"] = "true";
    given["file_path"] = "/tmp";
    const auto created = backend::createBackend(*bench.table(), given, services);
    ASSERT_TRUE(created.ok()) << created.status().message();
    const PluginTable* const table = bench.table();
    int named = 0;
    for (const std::string& line : services.lines(LogLevel::WARN)) {
        if (line.find("ignoring unknown parameters active, file_path") != std::string::npos) {
            ++named;
            for (size_t i = 0; i < table->parameterCount; ++i) {
                EXPECT_THAT(line, HasSubstr(table->parameters[i].name));
            }
        }
    }
    EXPECT_EQ(named, 1);
}

// The same range twice, and ranges that overlap: each registration lives for itself.
void registersTheSameAgain(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(65536);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    local->buffer().fill(1);
    MemoryRegion part = local->buffer().region();
    part.address += size / 2;
    part.size -= size / 2;
    for (int round = 0; round < 200; ++round) {
        auto again = side->backend().registerMemory(local->buffer().region());
        auto half = side->backend().registerMemory(part);
        auto there = side->backend().registerMemory(remote->buffer().region());
        ASSERT_TRUE(again.ok()) << again.status().message();
        ASSERT_TRUE(half.ok()) << half.status().message();
        ASSERT_TRUE(there.ok()) << there.status().message();
        if (round % 2 == 0) {
            std::move(again).value().reset();
        }
    }
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    EXPECT_TRUE(job.add({0, 0, size}).run(side->backend()));
    EXPECT_EQ(remote->buffer().bytes(0, size), pattern(1, 0, size));
}

// Names of what is in a folder of /proc, such as the open descriptors.
std::set<int> numbersIn(const char* folder) {
    std::set<int> found;
    DIR* const directory = opendir(folder);
    if (directory == nullptr) {
        return found;
    }
    const int own = dirfd(directory);
    while (const dirent* entry = readdir(directory)) {
        const int number = std::atoi(entry->d_name);
        if (entry->d_name[0] != '.' && number != own) {
            found.insert(number);
        }
    }
    closedir(directory);
    return found;
}

void liveOnce(Bench& bench) {
    const auto side = bench.newSide("conformance-once");
    ASSERT_TRUE(side);
    const uint64_t size = bench.rounded(2 << 20);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    job.add({0, 0, size}).run(side->backend());
}

void leavesNothingBehind(Bench& bench) {
    liveOnce(bench);  // whatever a library keeps for ever, it keeps from here on
    const std::set<int> files = numbersIn("/proc/self/fd");
    const size_t threads = numbersIn("/proc/self/task").size();
    for (int round = 0; round < 10; ++round) {
        liveOnce(bench);
    }
    EXPECT_EQ(numbersIn("/proc/self/fd"), files) << "descriptors stay open";
    // A joined thread may show in /proc for a moment.
    eventually([&] { return numbersIn("/proc/self/task").size() <= threads; });
    EXPECT_LE(numbersIn("/proc/self/task").size(), threads) << "threads stay";
}

// A sanitizer starts its symbolizer, over pipes of its own, with the first report that it looks at,
// one that is suppressed included: before the descriptors are counted, then.
void startSymbolizer() {
    using Symbolize = void (*)(void* pc, const char* format, char* text, size_t size);
    void* const found = dlsym(RTLD_DEFAULT, "__sanitizer_symbolize_pc");
    if (found != nullptr) {
        std::array<char, 256> text = {};
        reinterpret_cast<Symbolize>(found)(found, "%f", text.data(), text.size());
    }
}

void descriptorsCloseOnExec(Bench& bench) {
    startSymbolizer();
    const std::set<int> before = numbersIn("/proc/self/fd");
    const auto side = bench.newSide("conformance-exec");
    ASSERT_TRUE(side);
    const uint64_t size = bench.rounded(2 << 20);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*side, size);
    Job job(OpType::WRITE, local->region(), remote->region(), side->peer(true));
    job.add({0, 0, size}).run(side->backend());
    for (const int fd : numbersIn("/proc/self/fd")) {
        if (before.count(fd) == 0) {
            const int flags = fcntl(fd, F_GETFD);
            std::error_code closed;
            const auto what =
                std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), closed);
            EXPECT_TRUE(flags < 0 || (flags & FD_CLOEXEC) != 0)
                << "descriptor " << fd << ": " << what;
        }
    }
}

// As the agent ends: cancel, wait until final, destroy everything at once.
void endsWithWorkInFlight(Bench& bench) {
    for (int round = 0; round < 10; ++round) {
        const auto side = bench.newSide("conformance-end", bench.subject().slowParameters);
        ASSERT_TRUE(side);
        const uint64_t size = bench.rounded(4 << 20);
        const auto local = bench.local(*side, 4 * size);
        const auto remote = bench.remote(*side, 4 * size);
        std::deque<Job> jobs;
        std::vector<std::shared_ptr<TestCompletion>> ends;
        for (uint64_t i = 0; i < 4; ++i) {
            jobs.emplace_back(OpType::WRITE, local->region(), remote->region(), side->peer(true));
            ASSERT_TRUE(jobs.back().add({i * size, i * size, size}).prepare(side->backend()).ok());
            ends.push_back(jobs.back().post());
            ASSERT_TRUE(ends.back());
        }
        for (size_t i = 0; i < jobs.size(); ++i) {
            ends[i]->requestCancel();
            jobs[i].transfer().cancel();
        }
        for (size_t i = 0; i < jobs.size(); ++i) {
            ASSERT_TRUE(jobs[i].wait(side->backend(), *ends[i]));
            jobs[i].release();
        }
    }
}

// How `from` sees a region of `to`.
struct Linked {
    PlanRegion region;
    std::unique_ptr<BackendMemory> imported;
};

Result<Linked> link(Side& from, Side& to, Registered& there) {
    Linked linked{there.region(), nullptr};
    linked.region.memory = nullptr;
    RemoteSupport* const remote = from.backend().remote();
    if (remote == nullptr) {
        return linked;  // lanes find regions by id
    }
    auto info = to.backend().remote()->connectionInfo();
    if (!info.ok()) {
        return info.status();
    }
    NIXL_RETURN_IF_ERROR(remote->addPeer(to.peer(false), info.value()));
    auto blob = to.backend().remote()->exportMemory(*there.memory());
    if (!blob.ok()) {
        return blob.status();
    }
    auto memory = remote->importMemory(to.peer(false), there.buffer().region(), blob.value());
    if (!memory.ok()) {
        return memory.status();
    }
    linked.imported = std::move(memory).value();
    linked.region.memory = linked.imported.get();
    return linked;
}

void peerRemovedAndAddedAgain(Bench& bench) {
    Side* const side = bench.side();
    const uint64_t size = bench.rounded(100'000);
    const auto local = bench.local(*side, size);
    for (uint64_t round = 0; round < 20; ++round) {
        const auto peer = bench.newSide("conformance-peer");
        ASSERT_TRUE(peer);
        const auto remote = bench.remote(*peer, size);
        auto linked = link(*side, *peer, *remote);
        ASSERT_TRUE(linked.ok()) << linked.status().message();
        local->buffer().fill(round);
        Job job(OpType::WRITE, local->region(), linked.value().region, peer->peer(false));
        ASSERT_TRUE(job.add({0, 0, size}).run(side->backend()));
        EXPECT_EQ(remote->buffer().bytes(0, size), pattern(round, 0, size));
        job.release();
        // On the project's lanes the core knows the peers, and the backend only some more keys.
        RemoteSupport* const known = side->backend().remote();
        if (known != nullptr && !side->backend().usesLanes()) {
            std::move(linked).value().imported.reset();
            known->removePeer(peer->peer(false));
            known->removePeer(peer->peer(false));  // again: nothing happens
            Job late(OpType::WRITE, local->region(), remote->region(), peer->peer(false));
            const Status status = late.add({0, 0, size}).prepare(side->backend());
            EXPECT_FALSE(status.ok()) << "a transfer to a removed peer was prepared";
            EXPECT_FALSE(known->addPeer(peer->peer(false), "no connection info").ok());
        }
    }
}

// The bytes are there when the notification is, which comes once, in order of the transfers.
void notificationAfterData(Bench& bench) {
    Side* const side = bench.side();
    const auto peer = bench.newSide("conformance-peer");
    ASSERT_TRUE(peer);
    const uint64_t size = bench.rounded(300'000);
    const auto local = bench.local(*side, size);
    const auto remote = bench.remote(*peer, size);
    auto linked = link(*side, *peer, *remote);
    ASSERT_TRUE(linked.ok()) << linked.status().message();
    Job job(OpType::WRITE, local->region(), linked.value().region, peer->peer(false));
    ASSERT_TRUE(job.add({0, 0, size}).prepare(side->backend()).ok());
    for (uint64_t round = 0; round < 50; ++round) {
        local->buffer().fill(round);
        const std::string message = std::string("round\0", 6) + std::to_string(round);
        const auto end = job.post(message, true);
        ASSERT_TRUE(end);
        std::vector<std::pair<std::string, std::string>> seen;
        while (seen.empty() && !end->final()) {
            seen = peer->services().takeNotifications();
            job.progress(side->backend());
        }
        if (seen.empty()) {
            seen = peer->services().takeNotifications();
        }
        EXPECT_EQ(remote->buffer().bytes(0, size), pattern(round, 0, size));
        ASSERT_TRUE(job.wait(side->backend(), *end));
        ASSERT_EQ(end->state(), XferState::DONE) << end->status().message();
        ASSERT_EQ(seen.size(), 1U) << "round " << round;
        EXPECT_EQ(seen[0].second, message);
    }
    ASSERT_TRUE(job.run(side->backend()));  // without one
    EXPECT_TRUE(peer->services().takeNotifications().empty());
    const auto empty = job.post("", true);
    ASSERT_TRUE(empty && job.wait(side->backend(), *empty));
    EXPECT_EQ(peer->services().takeNotifications().size(), 1U) << "an empty one is one";
}

void queryTellsWhatIsThere(Bench& bench) {
    Side* const side = bench.side();
    QuerySupport* const query = side->backend().query();
    if (query == nullptr) {
        GTEST_SKIP() << "the backend has no query()";
    }
    const auto small = bench.subject().remote(bench.rounded(1000));
    const auto large = bench.subject().remote(bench.rounded(70'000));
    MemoryRegion absent = small->region();
    absent.metadata = "rw:/nonexistent/folder/file";
    absent.deviceId = UINT64_MAX;
    const std::vector<MemoryRegion> asked = {small->region(), absent, large->region()};
    const auto answer = query->query(asked);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    ASSERT_EQ(answer.value().size(), 3U);
    const std::map<std::string, std::string> none_there{{"size", "absent"}};
    const auto& first = answer.value()[0];
    const auto& last = answer.value()[2];
    ASSERT_TRUE(first.has_value());
    ASSERT_TRUE(last.has_value());
    EXPECT_FALSE(answer.value()[1].has_value());
    EXPECT_EQ(first.value_or(none_there).at("size"), std::to_string(bench.rounded(1000)));
    EXPECT_EQ(last.value_or(none_there).at("size"), std::to_string(bench.rounded(70'000)));
    const auto none = query->query({});
    ASSERT_TRUE(none.ok());
    EXPECT_TRUE(none.value().empty());
}

}  // namespace

std::vector<Check> lifetimeChecks() {
    using For = Check::For;
    return {{"TellsWhatItCan", For::ALL, tellsWhatItCan},
            {"RefusesIllTypedParameters", For::ALL, refusesIllTypedParameters},
            {"WarnsOnceOfUnknownParameters", For::ALL, warnsOnceOfUnknownParameters},
            {"RegistersTheSameAgain", For::ALL, registersTheSameAgain},
            {"LeavesNothingBehind", For::ALL, leavesNothingBehind},
            {"DescriptorsCloseOnExec", For::ALL, descriptorsCloseOnExec},
            {"EndsWithWorkInFlight", For::ALL, endsWithWorkInFlight},
            {"PeerRemovedAndAddedAgain", For::NETWORK, peerRemovedAndAddedAgain},
            {"NotificationAfterData", For::NETWORK, notificationAfterData},
            {"QueryTellsWhatIsThere", For::STORAGE, queryTellsWhatIsThere}};
}

}  // namespace nixl::testkit
