// The C++ example of the guide, line by line, inside a program that gives it what it takes for
// granted: memory, descriptors and a second agent. Built and run by tests/examples.
#include <cstdio>
#include <memory>
#include <vector>

#include <nixl/agent.h>
#include <nixl/backend.h>

namespace {

// What the example leaves out: its Python twin has this step, "exchange metadata".
void exchangeMetadata(nixl::Agent& agent, nixl::Agent& remote) {
    agent.addPeer(remote.metadata());
}

}  // namespace

int main() {
    constexpr size_t size = 1 << 20;
    std::vector<char> source(size, 'x');
    std::vector<char> target(size, '.');
    void* const addr = source.data();
    nixl::AgentConfig remote_config;
    remote_config.backends = {"UCX"};
    nixl::Agent remote("remote_agent", remote_config);
    auto remote_reg = remote.registerMemory({{target.data(), size}}, "UCX");
    const nixl::DescriptorList local_descs = {{addr, size}};
    const nixl::DescriptorList remote_descs = {{target.data(), size}};

    // clang-format off
    // ---- the guide begins ----
    // Create agent
    nixl::AgentConfig config;
    config.backends = {"UCX"};
    auto agent = std::make_unique<nixl::Agent>("my_agent", config);

    // Register memory
    std::vector<nixl::MemDescriptor> descs = {
        {addr, size, 0, nixl::MemType::DRAM}
    };
    auto reg_handle = agent->registerMemory(descs, "UCX");

    exchangeMetadata(*agent, remote);  // the one line that is not the guide's
    // Create transfer
    auto xfer_handle = agent->prepareTransfer(
        nixl::OpType::WRITE,
        local_descs,
        remote_descs,
        "remote_agent",
        "UCX"
    );

    // Execute transfer
    agent->postTransfer(xfer_handle);

    // Poll for completion
    while (agent->checkTransfer(xfer_handle) != nixl::XferState::DONE) {
        // Progress
    }

    // Cleanup
    agent->releaseTransfer(xfer_handle);
    agent->deregisterMemory(reg_handle);
    // ---- the guide ends ----
    // clang-format on

    agent->releaseTransfer(xfer_handle);  // twice is harmless
    const bool same = source == target;
    std::printf("%zu bytes %s\n", size, same ? "arrived" : "did NOT arrive");
    return same ? 0 : 1;
}
