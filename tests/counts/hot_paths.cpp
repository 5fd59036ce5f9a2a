// The paths that callers run most often, each as one function whose instructions callgrind counts
// (tests/counts/counts.py): `nixl_counts prepare|index|post|poll`. One thread calls; what moves is
// 64 B within the process, which the call itself copies.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "nixl/agent.h"

namespace {

constexpr int kCalls = 200;
constexpr size_t kBlocks = 256;
constexpr size_t kBlock = 64;

struct Pair {
    Pair() : source(kBlocks * kBlock, 1), sink(kBlocks * kBlock) {
        nixl::AgentConfig config;
        config.backends = {"UCX"};
        left = std::make_unique<nixl::Agent>("left", config);
        right = std::make_unique<nixl::Agent>("right", config);
        mine = left->registerMemory({{source.data(), source.size()}});
        theirs = right->registerMemory({{sink.data(), sink.size()}});
        left->addPeer(right->metadata());
    }
    // Every other block, so that neighbours do not become one.
    static nixl::DescriptorList blocks(const std::vector<char>& memory) {
        nixl::DescriptorList list(nixl::MemType::DRAM);
        for (size_t block = 0; block < kBlocks; block += 2) {
            list.append(reinterpret_cast<uint64_t>(memory.data()) + block * kBlock, kBlock);
        }
        return list;
    }

    std::vector<char> source;
    std::vector<char> sink;
    std::unique_ptr<nixl::Agent> left;
    std::unique_ptr<nixl::Agent> right;
    nixl::RegistrationHandle mine;
    nixl::RegistrationHandle theirs;
};

}  // namespace

// Seen from outside, so that callgrind finds them by these names.
extern "C" {

[[gnu::noinline, gnu::used]] void nixlCountPrepare(Pair& pair) {
    const nixl::DescriptorList local = Pair::blocks(pair.source);
    const nixl::DescriptorList remote = Pair::blocks(pair.sink);
    for (int call = 0; call < kCalls; ++call) {
        pair.left->prepareTransfer(nixl::OpType::WRITE, local, remote, "right");
    }
}

[[gnu::noinline, gnu::used]] void nixlCountIndex(Pair& pair,
                                                 const nixl::PreparedList& local,
                                                 const nixl::PreparedList& remote,
                                                 const std::vector<int64_t>& order) {
    for (int call = 0; call < kCalls; ++call) {
        pair.left->prepareTransfer(nixl::OpType::WRITE, local.id(), order, remote.id(), order);
    }
}

// With the look at the state that finds it done.
[[gnu::noinline, gnu::used]] void nixlCountPost(nixl::Agent& agent, nixl::HandleId id) {
    for (int call = 0; call < kCalls; ++call) {
        agent.postTransfer(id);
        while (agent.checkTransfer(id) == nixl::XferState::PENDING) {
        }
    }
}

[[gnu::noinline, gnu::used]] void nixlCountPoll(nixl::Agent& agent, nixl::HandleId id) {
    for (int call = 0; call < kCalls; ++call) {
        if (agent.checkTransfer(id) != nixl::XferState::DONE) {
            std::abort();
        }
    }
}

}  // extern "C"

int main(int count, char** words) {
    const std::string path = count == 2 ? words[1] : "";
    if (path == "compiler") {
        std::printf("gcc %d\n", __GNUC__);
        return 0;
    }
    Pair pair;
    nixl::TransferHandle handle = pair.left->prepareTransfer(
        nixl::OpType::WRITE, {{pair.source.data(), kBlock}}, {{pair.sink.data(), kBlock}}, "right");
    pair.left->postTransfer(handle);
    pair.left->waitTransfer(handle);
    if (path == "prepare") {
        nixlCountPrepare(pair);
    } else if (path == "index") {
        nixl::PreparedList local = pair.left->prepareList("", Pair::blocks(pair.source));
        nixl::PreparedList remote = pair.left->prepareList("right", Pair::blocks(pair.sink));
        std::vector<int64_t> order(kBlocks / 4);
        std::iota(order.begin(), order.end(), 0);
        nixlCountIndex(pair, local, remote, order);
    } else if (path == "post") {
        nixlCountPost(*pair.left, handle.id());
    } else if (path == "poll") {
        nixlCountPoll(*pair.left, handle.id());
    } else {
        std::fprintf(stderr, "nixl_counts: prepare, index, post, poll or compiler\n");
        return 2;
    }
    return 0;
}
