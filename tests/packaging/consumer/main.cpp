// A user's program: moves 4096 bytes inside one agent, with installed headers only.
#include <cstdio>
#include <cstring>
#include <vector>

#include <nixl/agent.h>
#include <nixl/version.h>

int main() {
    nixl::AgentConfig config;
    config.backends = {"UCX"};
    nixl::Agent agent("consumer", config);
    std::vector<char> source(4096, 'x');
    std::vector<char> target(4096, 0);
    const std::vector<nixl::MemDescriptor> from = {{source.data(), source.size()}};
    const std::vector<nixl::MemDescriptor> to = {{target.data(), target.size()}};
    auto first = agent.registerMemory(from);
    auto second = agent.registerMemory(to);
    auto transfer = agent.prepareTransfer(nixl::OpType::WRITE, from, to, "consumer");
    agent.postTransfer(transfer);
    agent.waitTransfer(transfer);
    if (std::memcmp(source.data(), target.data(), source.size()) != 0) {
        std::puts("the bytes differ");
        return 1;
    }
    std::printf("nixl %s moved %zu bytes\n", nixl_version(), target.size());
    return 0;
}
