// See fabric_rails.h.
#include "fabric_rails.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <sched.h>

namespace nixl::fabric {
namespace {

constexpr int kLocalDistance = 10;
constexpr int kUnknownDistance = 15;

// In the order in which they are taken when none is named. libfabric is asked for each by its name:
// merely looking for devices has crashed others (psm).
constexpr const char* kSupported[] = {"efa", "verbs;ofi_rxm", "tcp;ofi_rxm"};

std::string providerOf(const fi_info& info) {
    return info.fabric_attr->prov_name == nullptr ? "" : info.fabric_attr->prov_name;
}

std::string deviceOf(const fi_info& info) {
    return info.domain_attr->name == nullptr ? "" : info.domain_attr->name;
}

std::string fullName(const std::string& name) {
    return name == "tcp" || name == "verbs" ? name + ";ofi_rxm" : name;
}

// Why a provider must not be used, or nothing.
std::string refusal(const std::string& provider) {
    if (std::find(std::begin(kSupported), std::end(kSupported), provider) != std::end(kSupported)) {
        return {};
    }
    if (provider == "net") {
        return "it tells of delivery before the bytes are there";
    }
    if (provider == "shm") {
        return "it holds a lock in shared memory while it copies, and whoever meets that of a "
               "process "
               "that was killed or stopped hangs; lane host moves bytes between processes of a "
               "host";
    }
    return "only efa, verbs and tcp are known to tell of delivery rightly";
}

int readNumber(const std::string& path, int otherwise) {
    std::ifstream file(path);
    int value = 0;
    return file >> value ? value : otherwise;
}

int nodeOf(const fi_info& info) {
    const std::string name = deviceOf(info);
    if (info.nic != nullptr && info.nic->bus_attr != nullptr &&
        info.nic->bus_attr->bus_type == FI_BUS_PCI) {
        const fi_pci_attr& pci = info.nic->bus_attr->attr.pci;
        char path[80];
        std::snprintf(path, sizeof(path), "/sys/bus/pci/devices/%04x:%02x:%02x.%x/numa_node",
                      pci.domain_id, pci.bus_id, pci.device_id, pci.function_id);
        return readNumber(path, -1);
    }
    return readNumber("/sys/class/net/" + name + "/device/numa_node", -1);
}

InfoPtr hintsFor(const FabricLibrary& library, const char* provider) {
    InfoPtr hints(library.dupInfo(nullptr), library.freeInfo);
    if (hints == nullptr) {
        return hints;
    }
    hints->fabric_attr->prov_name = strdup(provider);
    hints->caps = FI_MSG | FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->mr_mode =
        FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_HMEM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
    return hints;
}

// Adds the devices of one provider, each once; `gpu`: with GPU memory.
long listOne(const FabricLibrary& library,
             const char* provider,
             bool gpu,
             std::set<std::string>& seen,
             std::vector<InfoPtr>& all) {
    const InfoPtr hints = hintsFor(library, provider);
    if (hints == nullptr) {
        return -FI_ENOMEM;
    }
    hints->caps |= gpu ? FI_HMEM : 0;
    fi_info* found = nullptr;
    long error = library.getInfo(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), nullptr, nullptr,
                                 0, hints.get(), &found);
    if (error == -FI_ENOSYS) {  // an older library than the headers
        error = library.getInfo(library.getVersion(), nullptr, nullptr, 0, hints.get(), &found);
    }
    for (const fi_info* info = found; info != nullptr; info = info->next) {
        if (providerOf(*info) == provider && info->addr_format != FI_SOCKADDR_IN6 &&
            seen.insert(providerOf(*info) + " " + deviceOf(*info)).second) {
            all.emplace_back(library.dupInfo(info), library.freeInfo);
        }
    }
    if (found != nullptr) {
        library.freeInfo(found);
    }
    return error == -FI_ENODATA ? 0 : error;
}

// Every device that could be used. GPU memory only where the device itself reaches it.
std::vector<InfoPtr> listAll(const FabricLibrary& library, long& error) {
    std::vector<InfoPtr> all;
    std::set<std::string> seen;
    error = 0;
    for (const std::string provider : kSupported) {
        if (provider == "efa" || provider == "verbs;ofi_rxm") {
            static_cast<void>(listOne(library, provider.c_str(), true, seen, all));
        }
        const long result = listOne(library, provider.c_str(), false, seen, all);
        error = error == 0 ? result : error;
    }
    return all;
}

template <typename Get>
std::string namesOf(const std::vector<InfoPtr>& all, const Get& get) {
    std::string text;
    std::set<std::string> seen;
    for (const InfoPtr& info : all) {
        if (const std::string name = get(*info); seen.insert(name).second) {
            text += (text.empty() ? "" : ", ") + name;
        }
    }
    return text.empty() ? "none" : text;
}

// Of a provider named or not; empty where it is not there.
std::vector<InfoPtr> ofProvider(const std::vector<InfoPtr>& all, const std::string& provider) {
    std::vector<InfoPtr> mine;
    std::copy_if(all.begin(), all.end(), std::back_inserter(mine),
                 [&](const InfoPtr& info) { return providerOf(*info) == provider; });
    return mine;
}

Result<std::vector<InfoPtr>> named(const std::vector<InfoPtr>& mine,
                                   const std::vector<std::string>& devices) {
    std::vector<InfoPtr> chosen;
    for (const std::string& device : devices) {
        const auto found = std::find_if(mine.begin(), mine.end(), [&](const InfoPtr& info) {
            return deviceOf(*info) == device;
        });
        if (found == mine.end()) {
            return Status::invalidParam("device_list names \"" + device + "\"; provider " +
                                        providerOf(*mine.front()) + " has " +
                                        namesOf(mine, deviceOf));
        }
        chosen.push_back(*found);
    }
    return chosen;
}

}  // namespace

std::vector<std::string> splitList(const std::string& text) {
    std::vector<std::string> words;
    std::stringstream stream(text);
    for (std::string word; std::getline(stream, word, ',');) {
        const size_t first = word.find_first_not_of(" \t");
        if (first != std::string::npos) {
            words.push_back(word.substr(first, word.find_last_not_of(" \t") + 1 - first));
        }
    }
    return words;
}

int distanceOf(const fi_info& info) {
    const int node = nodeOf(info);
    unsigned here = 0;
    if (node < 0 || getcpu(nullptr, &here) != 0) {
        return kUnknownDistance;
    }
    std::ifstream file("/sys/devices/system/node/node" + std::to_string(here) + "/distance");
    int distance = kLocalDistance;
    for (int i = 0; i <= node; ++i) {
        if (!(file >> distance)) {
            return kUnknownDistance;
        }
    }
    return distance;
}

Result<std::vector<InfoPtr>> chooseRails(const FabricLibrary& library, const RailOptions& options) {
    long error = 0;
    const std::vector<InfoPtr> all = listAll(library, error);
    const std::string found = "libfabric " + library.version + " has " + namesOf(all, providerOf);
    std::vector<InfoPtr> mine;
    if (!options.provider.empty()) {
        const std::string provider = fullName(options.provider);
        if (const std::string why = refusal(provider); !why.empty()) {
            return Status::notSupported("provider \"" + provider + "\" is not used: " + why + "; " +
                                        found);
        }
        mine = ofProvider(all, provider);
        if (mine.empty()) {
            return Status::notFound("no device of provider \"" + provider + "\" is here; " + found);
        }
    }
    for (const char* provider : kSupported) {
        mine = mine.empty() ? ofProvider(all, provider) : mine;
    }
    if (mine.empty()) {
        return Status::notFound("no device that libfabric can use is here (efa, verbs or tcp): " +
                                found + (error == 0 ? "" : "; " + library.error(error)));
    }
    size_t count = options.rails;
    if (!options.devices.empty()) {
        Result<std::vector<InfoPtr>> chosen = named(mine, options.devices);
        if (!chosen.ok()) {
            return chosen.status();
        }
        mine = std::move(chosen).value();
        count = count == 0 ? mine.size() : count;
    } else {
        const auto loopback = [](const InfoPtr& info) { return deviceOf(*info) == "lo"; };
        if (!std::all_of(mine.begin(), mine.end(), loopback)) {
            std::erase_if(mine, loopback);
        }
        std::multimap<int, InfoPtr> by_distance;  // those of one distance in their order
        for (const InfoPtr& info : mine) {
            by_distance.emplace(distanceOf(*info), info);
        }
        mine.clear();
        for (const auto& [distance, info] : by_distance) {
            mine.push_back(info);
        }
        count = count != 0 ? count : providerOf(*mine.front()) == "efa" ? mine.size() : 1;
    }
    if (count > mine.size()) {
        return Status::invalidParam(
            "num_rails=" + std::to_string(count) + ": provider " + providerOf(*mine.front()) +
            " has " + std::to_string(mine.size()) + " device(s): " + namesOf(mine, deviceOf));
    }
    mine.resize(count);
    return mine;
}

}  // namespace nixl::fabric
