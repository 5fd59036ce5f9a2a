// Copies a file through memory with the POSIX backend: copy_file FROM TO. Shows registrations by
// path, transfers that are posted again with other descriptors, deadlines and errors.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <nixl/agent.h>

namespace {

constexpr uint64_t kFrom = 1;  // in path mode the device id only names the file
constexpr uint64_t kTo = 2;
constexpr uint64_t kWindow = 16 << 20;

void move(nixl::Agent& agent,
          nixl::OpType op,
          std::vector<char>& memory,
          const nixl::MemDescriptor& file) {
    const nixl::DescriptorList local = {{memory.data(), file.size}};
    auto transfer = agent.prepareTransfer(op, local, {file}, agent.name(), "POSIX");
    agent.postTransfer(transfer);
    agent.waitTransfer(transfer, std::chrono::seconds(60));
}

uint64_t copy(const std::string& from, const std::string& to) {
    nixl::AgentConfig config;
    config.backends = {"POSIX"};
    nixl::Agent agent("copy", config);

    nixl::RegistrationList asked(nixl::MemType::FILE);
    asked.append(0, 0, kFrom, "ro:" + from);
    const auto found = agent.queryMemory(asked, "POSIX");
    if (!found[0].has_value()) {
        throw nixl::Error(nixl::Status::notFound(from + ": no such file"));
    }
    const uint64_t size = std::stoull(found[0]->at("size"));

    std::vector<char> window(std::max<uint64_t>(1, std::min(size, kWindow)));
    const auto memory = agent.registerMemory({{window.data(), window.size()}}, "POSIX");
    const auto files =
        agent.registerMemory({{0, size, kFrom, nixl::MemType::FILE, "ro:" + from},
                              {0, size, kTo, nixl::MemType::FILE, "rw,create:" + to}},
                             "POSIX");
    for (uint64_t offset = 0; offset < size; offset += kWindow) {
        const uint64_t bytes = std::min(kWindow, size - offset);
        move(agent, nixl::OpType::READ, window, {offset, bytes, kFrom, nixl::MemType::FILE});
        move(agent, nixl::OpType::WRITE, window, {offset, bytes, kTo, nixl::MemType::FILE});
    }
    return size;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: copy_file FROM TO\n");
        return 2;
    }
    try {
        std::printf("%llu bytes copied\n", static_cast<unsigned long long>(copy(argv[1], argv[2])));
        return 0;
    } catch (const nixl::Error& error) {
        std::fprintf(stderr, "copy_file: %s\n", error.what());
        return 1;
    }
}
