// See mooncake_machine.h.
#include "mooncake_machine.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

namespace nixl::mooncake {

std::string ownAddress() {
    std::string found = "127.0.0.1";
    ifaddrs* all = nullptr;
    if (getifaddrs(&all) != 0) {
        return found;
    }
    for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
        const bool up = (one->ifa_flags & IFF_UP) != 0 && (one->ifa_flags & IFF_LOOPBACK) == 0;
        if (!up || one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) {
            continue;
        }
        std::array<char, INET_ADDRSTRLEN> text{};
        const auto* const address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
        if (inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size()) != nullptr) {
            found = text.data();
            break;
        }
    }
    freeifaddrs(all);
    return found;
}

std::vector<std::string> rdmaDevices() {
    const char* const named = std::getenv("NIXL_RDMA_DEVICES");
    std::vector<std::string> devices;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(
             named != nullptr ? named : "/sys/class/infiniband", error)) {
        devices.push_back(entry.path().filename());
    }
    std::sort(devices.begin(), devices.end());
    return devices;
}

}  // namespace nixl::mooncake
