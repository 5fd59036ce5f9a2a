// AgentImpl: registering, deregistering and querying memory and storage.
#include <algorithm>

#include "agent/agent_impl.h"
#include "base/log.h"
#include "device/devices.h"

namespace nixl::detail {
namespace {

MemoryRegion regionOf(MemType type, const RegistrationList::Entry& entry) {
    return {type, entry.address, entry.size, entry.deviceId, entry.metadata};
}

std::string place(size_t index, MemType type) {
    return "descriptor " + std::to_string(index) + " (" + memTypeName(type) + ")";
}

// What holds no memory: registering it registers nothing, as existing code expects.
bool isNothing(MemType type, const RegistrationList::Entry& entry) {
    return memory::isMemory(type) && entry.size == 0;
}

Status checkEntries(const RegistrationList& list) {
    for (size_t i = 0; i < list.entries.size(); ++i) {
        const RegistrationList::Entry& entry = list.entries[i];
        const auto index = static_cast<int64_t>(i);
        if (entry.address + entry.size < entry.address) {
            return Status::invalidParam(
                place(i, list.type()) + ": address " + std::to_string(entry.address) + " plus " +
                    std::to_string(entry.size) + " bytes passes the end of addresses",
                index);
        }
        if (memory::isMemory(list.type()) && entry.address == 0 && entry.size != 0) {
            return Status::invalidParam(
                place(i, list.type()) + ": a null address cannot be registered", index);
        }
    }
    return {};
}

std::string whyNoDevices(MemType type) {
    const Status status = type == MemType::VRAM ? device::devices().available() : Status();
    return status.ok() ? std::string() : " (" + status.message() + ")";
}

// GPU memory is what the driver says it is. Where there is no driver the backends say what they
// can.
Status checkDevices(const RegistrationList& list) {
    Devices& devices = device::devices();
    if (list.type() != MemType::VRAM || !devices.likely() || !devices.available().ok()) {
        return {};
    }
    for (size_t i = 0; i < list.entries.size(); ++i) {
        const RegistrationList::Entry& entry = list.entries[i];
        const Status status = devices.check(entry.address, entry.size, entry.deviceId);
        if (!status.ok()) {
            return {status.code(), "descriptor " + std::to_string(i) + ": " + status.message(), 0,
                    static_cast<int64_t>(i)};
        }
    }
    return {};
}

void warnOfNothing(const RegistrationList& list, const std::string& agent) {
    const auto nothing = [&](const auto& entry) { return isNothing(list.type(), entry); };
    const auto first = std::find_if(list.entries.begin(), list.entries.end(), nothing);
    if (first == list.entries.end()) {
        return;
    }
    const auto count = std::count_if(first, list.entries.end(), nothing);
    base::log(LogLevel::WARN,
              "agent \"" + agent +
                  "\": " + place(static_cast<size_t>(first - list.entries.begin()), list.type()) +
                  (count == 1 ? " has" : " and " + std::to_string(count - 1) + " more have") +
                  " a length of 0 bytes: nothing is registered for it");
}

}  // namespace

Status AgentImpl::registerAt(const RegistrationList& list,
                             const agent::LoadedBackend& loaded,
                             std::vector<memory::RegionTable::Addition>& additions) const {
    for (size_t i = 0; i < list.entries.size(); ++i) {
        if (isNothing(list.type(), list.entries[i])) {
            continue;
        }
        Result<std::unique_ptr<BackendMemory>> memory =
            loaded.backend->registerMemory(regionOf(list.type(), list.entries[i]));
        if (!memory.ok()) {
            const Status& why = memory.status();
            for (auto& addition : additions) {
                while (!addition.memories.empty() &&
                       addition.memories.back().first == loaded.index) {
                    addition.memories.pop_back();
                }
            }
            return {why.code(),
                    "backend " + loaded.name + " cannot register " + place(i, list.type()) + ": " +
                        why.message(),
                    why.systemErrno(), static_cast<int64_t>(i)};
        }
        additions[i].memories.emplace_back(loaded.index, std::move(memory).value());
    }
    return {};
}

Status AgentImpl::registerMemory(const RegistrationList& list, const Names& backends) {
    NIXL_RETURN_IF_ERROR(checkEntries(list));
    NIXL_RETURN_IF_ERROR(checkDevices(list));
    Result<LoadedList> chosen = choose(backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    std::vector<memory::RegionTable::Addition> additions(list.entries.size());
    for (size_t i = 0; i < additions.size(); ++i) {
        additions[i].entry = &list.entries[i];
    }
    Status first;
    size_t taken = 0;
    std::string names;
    for (const Loaded& loaded : chosen.value()) {
        names += (names.empty() ? "" : " ") + loaded->name;
        if (!loaded->holds(list.type())) {
            if (!backends.empty()) {
                return Status::notSupported("backend " + loaded->name + " does not take " +
                                            memTypeName(list.type()) + " memory");
            }
            continue;
        }
        Status status = registerAt(list, *loaded, additions);
        if (status.ok()) {
            ++taken;
            continue;
        }
        if (!backends.empty()) {
            return status;
        }
        base::log(LogLevel::DEBUG, status.message());
        first = first.ok() ? std::move(status) : std::move(first);
    }
    if (taken == 0) {
        return !first.ok() ? first
                           : Status::notSupported(
                                 "no backend of agent \"" + self().name + "\" takes " +
                                 memTypeName(list.type()) + " memory; it has " +
                                 (names.empty() ? "none" : names) + whyNoDevices(list.type()));
    }
    std::erase_if(additions, [&](const auto& one) { return isNothing(list.type(), *one.entry); });
    shared_->regions().add(list.type(), std::move(additions));
    metadataChanged();
    warnOfNothing(list, self().name);
    return {};
}

Status AgentImpl::deregisterMemory(const RegistrationList& list, const Names& backends) {
    if (list.entries.empty()) {
        return {};
    }
    Result<LoadedList> chosen = choose(backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    std::vector<unsigned> indices;
    for (const Loaded& loaded : chosen.value()) {
        indices.push_back(loaded->index);
    }
    sweepParked();
    const Status status =
        deregisterFenced(list, indices, std::chrono::steady_clock::now() + config_.peerTimeout);
    metadataChanged();
    return status;
}

Result<std::vector<Agent::QueryResult>> AgentImpl::query(const RegistrationList& list,
                                                         const std::string& backend) {
    Result<Loaded> chosen = loaded(backend);
    if (!chosen.ok()) {
        return chosen.status();
    }
    QuerySupport* const support = chosen.value()->backend->query();
    if (support == nullptr) {
        return Status::notSupported("backend " + chosen.value()->name +
                                    " cannot be queried: it keeps no storage");
    }
    if (!chosen.value()->holds(list.type())) {
        return Status::notSupported("backend " + chosen.value()->name + " does not keep " +
                                    memTypeName(list.type()));
    }
    std::vector<MemoryRegion> regions;
    regions.reserve(list.entries.size());
    for (const RegistrationList::Entry& entry : list.entries) {
        regions.push_back(regionOf(list.type(), entry));
    }
    return support->query(regions);
}

}  // namespace nixl::detail
