// See support.h.
#include "support.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dirent.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "backend/plugins.h"
#include "base/mutex.h"
#include "testing/agents.h"
#include "testing/until.h"

extern "C" const nixl::PluginTable* nixlPluginTable();  // UCX, linked into this program

namespace nixl::crosstest {
namespace {

// The completions that STUCK keeps.
struct Kept {
    Mutex mutex;
    std::vector<CompletionPtr> completions;
};

Kept& kept() {
    static Kept* const one = new Kept;
    return *one;
}

class StuckTransfer final : public BackendTransfer {
  public:
    Status post(CompletionPtr completion, std::string_view, bool) override {
        const MutexLock lock(kept().mutex);
        kept().completions.push_back(std::move(completion));
        return {};
    }
    void cancel() override {}
};

class StuckBackend final : public Backend {
  public:
    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion&) override {
        return std::unique_ptr<BackendMemory>(std::make_unique<BackendMemory>());
    }
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan&) override {
        return std::unique_ptr<BackendTransfer>(std::make_unique<StuckTransfer>());
    }

  private:
    const BackendInfo info_{"STUCK", {MemType::DRAM}, false};
};

Result<std::unique_ptr<Backend>> createStuck(const Parameters&, PluginServices&) {
    return std::unique_ptr<Backend>(std::make_unique<StuckBackend>());
}

const PluginTable& stuckTable() {
    static const MemType types[] = {MemType::DRAM};
    static const PluginTable table = [] {
        PluginTable made{};
        made.abi = kPluginAbi;
        made.name = "STUCK";
        made.memoryTypes = types;
        made.memoryTypeCount = 1;
        made.createBackend = createStuck;
        return made;
    }();
    return table;
}

int entriesOf(const char* folder) {
    int count = 0;
    DIR* const directory = opendir(folder);
    while (directory != nullptr && readdir(directory) != nullptr) {
        ++count;
    }
    if (directory != nullptr) {
        closedir(directory);
    }
    return count;
}

}  // namespace

AgentConfig configFor(const std::string& backend, const BackendParams& params) {
    EXPECT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
    AgentConfig config = testkit::memoryConfig();
    config.backends = {backend};
    config.backendParams = {{backend, params}};
    return config;
}

AgentConfig stuckConfig() {
    EXPECT_TRUE(backend::PluginRegistry::instance().add(stuckTable()).ok());
    return configFor("STUCK");
}

void releaseStuck() {
    std::vector<CompletionPtr> ended;
    {
        const MutexLock lock(kept().mutex);
        ended.swap(kept().completions);
    }
    for (const CompletionPtr& completion : ended) {
        completion->succeed();
    }
}

uint64_t residentBytes() {
    unsigned long long pages = 0;
    unsigned long long resident = 0;
    FILE* const file = std::fopen("/proc/self/statm", "re");
    if (file == nullptr || std::fscanf(file, "%llu %llu", &pages, &resident) != 2) {
        ADD_FAILURE() << "/proc/self/statm cannot be read";
    }
    if (file != nullptr) {
        std::fclose(file);
    }
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

int openDescriptors() {
    return entriesOf("/proc/self/fd");
}

int threadCount() {
    return entriesOf("/proc/self/task");
}

bool threadsEnd(int most) {
    return testkit::eventually([&] { return threadCount() <= most; });
}

uint64_t rounds(uint64_t usual) {
    const char* const soak = std::getenv("NIXL_SOAK");
    const long factor = soak != nullptr ? std::atol(soak) : 1;
    return factor > 1 ? usual * static_cast<uint64_t>(factor) : usual;
}

Loop::Loop(Agent& owner, uint64_t size)
    : agent(owner),
      half(size / 2),
      bytes(size),
      first({{bytes.data(), half}}),
      second({{bytes.data() + half, half}}) {
    agent.registerMemory(RegistrationList{{bytes.data(), bytes.size()}}, {});
}

TransferHandle Loop::prepare() {
    return agent.prepareTransfer(OpType::WRITE, first, second, agent.name());
}

void Loop::fill(char with) {
    std::memset(bytes.data(), with, half);
}

bool Loop::moved() const {
    return std::memcmp(bytes.data(), bytes.data() + half, half) == 0;
}

}  // namespace nixl::crosstest
