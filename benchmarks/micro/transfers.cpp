// Posting, polling and creating transfers between two agents of this process, through the public
// API and the backend UCX of the build tree.
#include <cstdlib>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "nixl/agent.h"

namespace {

using nixl::Agent;
using nixl::XferState;

struct Pair {
    explicit Pair(size_t bytes) : source(bytes, 1), sink(bytes) {
        nixl::AgentConfig config;
        config.backends = {"UCX"};
        left = std::make_unique<Agent>("left", config);
        right = std::make_unique<Agent>("right", config);
        const auto keep = [](Agent& agent, std::vector<char>& memory) {
            nixl::RegistrationList list(nixl::MemType::DRAM);
            list.append(reinterpret_cast<uint64_t>(memory.data()), memory.size());
            agent.registerMemory(list, {});
        };
        keep(*left, source);
        keep(*right, sink);
        left->addPeer(right->metadata());
    }
    nixl::TransferHandle prepare(size_t size) const {
        return left->prepareTransfer(nixl::OpType::WRITE, {{source.data(), size}},
                                     {{sink.data(), size}}, "right");
    }

    std::vector<char> source;
    std::vector<char> sink;
    std::unique_ptr<Agent> left;
    std::unique_ptr<Agent> right;
};

void finish(Agent& agent, nixl::HandleId id) {
    while (agent.checkTransfer(id) == XferState::PENDING) {
    }
}

void postAndCheck(benchmark::State& state) {
    const auto size = static_cast<size_t>(state.range(0));
    const Pair pair(size);
    nixl::TransferHandle handle = pair.prepare(size);
    for (auto _ : state) {
        pair.left->postTransfer(handle.id());
        finish(*pair.left, handle.id());
    }
    state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(postAndCheck)->Arg(64)->Arg(4096)->Arg(65536)->Arg(1 << 20)->Arg(64 << 20)->UseRealTime();

void checkFinished(benchmark::State& state) {
    const Pair pair(64);
    nixl::TransferHandle handle = pair.prepare(64);
    pair.left->postTransfer(handle.id());
    finish(*pair.left, handle.id());
    for (auto _ : state) {
        benchmark::DoNotOptimize(pair.left->checkTransfer(handle.id()));
    }
}
BENCHMARK(checkFinished);

void createPostRelease(benchmark::State& state) {
    const Pair pair(64);
    for (auto _ : state) {
        nixl::TransferHandle handle = pair.prepare(64);
        pair.left->postTransfer(handle.id());
        finish(*pair.left, handle.id());
        pair.left->releaseTransfer(handle);
    }
}
BENCHMARK(createPostRelease);

}  // namespace

BENCHMARK_MAIN();
