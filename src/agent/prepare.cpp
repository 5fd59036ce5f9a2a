// AgentImpl: resolving both sides, choosing a backend, making transfers.
#include "agent/agent_impl.h"
#include "base/log.h"

namespace nixl::detail {

using agent::LoadedBackend;
using agent::Peer;
using agent::PreparedSide;
using agent::SideResolution;
using agent::Transfer;

namespace {

// Why a backend cannot serve a pair of memory types; empty where it can.
std::string reasonUnsupported(const LoadedBackend& loaded,
                              MemType local,
                              MemType remote,
                              bool self) {
    for (const MemType type : {local, remote}) {
        if (!loaded.holds(type)) {
            return loaded.name + " does not take " + memTypeName(type);
        }
    }
    if (loaded.storage() && !self) {
        return loaded.name + " reaches storage of this agent only";
    }
    if (loaded.storage() && memory::isMemory(remote)) {
        return loaded.name + " moves bytes between memory and storage only";
    }
    if (!memory::isMemory(local)) {
        return std::string("the local side must be memory, not ") + memTypeName(local);
    }
    return {};
}

}  // namespace

Result<AgentImpl::Side> AgentImpl::resolveOwn(const DescriptorList& list,
                                              const LoadedBackend& loaded) const {
    auto side = std::make_shared<SideResolution>();
    Status status = shared_->regions().resolve(list, loaded.index, side->side, side->uses);
    if (!status.ok()) {
        return Status(
            status.code(),
            status.message() + " with backend " + loaded.name + " at agent \"" + self().name + "\"",
            0, status.descriptorIndex());
    }
    side->regions.reserve(side->uses.size());
    for (const memory::RegionUse& use : side->uses) {
        const memory::Region& region = *use.region;
        side->regions.push_back({region.type, region.address, region.size, region.deviceId,
                                 region.metadata, use.memory, region.id, region.generation});
    }
    return Side(std::move(side));
}

Status AgentImpl::importKeys(SideResolution& side,
                             const LoadedBackend& loaded,
                             const std::vector<const memory::RemoteRegion*>& used) const {
    RemoteSupport* const remote = loaded.backend->remote();
    Peer& peer = *side.peer;
    if (remote == nullptr || peer.keys.empty()) {
        return {};  // nothing was exported for this backend
    }
    uint32_t backend = 0;
    while (peer.backends[backend].name != loaded.name) {
        ++backend;
    }
    const PlanPeer who{peer.identity.name, peer.identity.incarnation, false};
    MutexLock lock(peer.importsMutex);
    for (size_t i = 0; i < used.size(); ++i) {
        const auto key = peer.keys.find({backend, used[i]->id});
        if (key == peer.keys.end()) {
            continue;
        }
        auto& memory = peer.imports[{loaded.name, used[i]->id}];
        if (memory == nullptr) {
            Result<std::unique_ptr<BackendMemory>> made = remote->importMemory(
                who, {used[i]->type, used[i]->address, used[i]->size, used[i]->deviceId, {}},
                key->second);
            if (!made.ok()) {
                return made.status();
            }
            memory = std::move(made).value();
        }
        side.regions[i].memory = memory.get();
    }
    return {};
}

Result<AgentImpl::Side> AgentImpl::resolvePeer(const DescriptorList& list,
                                               const LoadedBackend& loaded,
                                               const std::shared_ptr<Peer>& peer) const {
    const uint32_t bit = peer->backendBit(loaded.name);
    if (bit == 0) {
        return Status::notFound("agent \"" + peer->identity.name +
                                "\" has no memory registered with a backend " + loaded.name);
    }
    auto side = std::make_shared<SideResolution>();
    side->peer = peer;
    std::vector<const memory::RemoteRegion*> used;
    NIXL_RETURN_IF_ERROR(peer->regions.resolve(list, bit, peer->identity.name, side->side, used));
    side->regions.reserve(used.size());
    for (const memory::RemoteRegion* region : used) {
        side->regions.push_back({region->type,
                                 region->address,
                                 region->size,
                                 region->deviceId,
                                 {},
                                 nullptr,
                                 region->id,
                                 region->generation});
    }
    NIXL_RETURN_IF_ERROR(importKeys(*side, loaded, used));
    return Side(std::move(side));
}

Result<std::shared_ptr<Peer>> AgentImpl::findPeer(const std::string& name) const {
    if (name == self().name) {
        return std::shared_ptr<Peer>();
    }
    learnPeer(name);
    if (std::shared_ptr<Peer> found = peer(name); found != nullptr) {
        return found;
    }
    constexpr size_t kMost = 16;
    const std::vector<std::string> names = peerNames();
    std::string known;
    for (size_t i = 0; i < names.size() && i < kMost; ++i) {
        known += " \"" + names[i] + "\"";
    }
    if (names.size() > kMost) {
        known += " and " + std::to_string(names.size() - kMost) + " more";
    }
    return Status::notFound("agent \"" + self().name + "\" has no metadata of agent \"" + name +
                            "\"; it knows" + (known.empty() ? " nobody" : known));
}

// Tries the candidates in order; `attempt(loaded)` gives a transfer or why not.
template <typename Attempt>
Result<HandleId> AgentImpl::tryBackends(const TransferOptions& options,
                                        MemType local,
                                        MemType remote,
                                        bool self_side,
                                        const Attempt& attempt) {
    Result<LoadedList> chosen = choose(options.backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    Status first;
    std::string unsupported;
    for (const Loaded& loaded : chosen.value()) {
        if (std::string why = reasonUnsupported(*loaded, local, remote, self_side); !why.empty()) {
            unsupported += (unsupported.empty() ? "" : "; ") + why;
            continue;
        }
        Result<std::unique_ptr<Transfer>> made = attempt(loaded);
        if (made.ok()) {
            return enter(std::move(made));
        }
        // A mistake in the call is one for every backend.
        if (made.status().code() == ErrorCode::MISMATCH ||
            made.status().code() == ErrorCode::INVALID_PARAM) {
            return made.status();
        }
        first = first.ok() ? made.status() : first;
    }
    if (!first.ok()) {
        return first;
    }
    return Status::notSupported(std::string("no backend moves bytes between ") +
                                memTypeName(local) + " and " + memTypeName(remote) +
                                " at agent \"" + self().name +
                                "\": " + (unsupported.empty() ? "it has none" : unsupported));
}

Result<HandleId> AgentImpl::enter(Result<std::unique_ptr<Transfer>> made) {
    if (!made.ok()) {
        return made.status();
    }
    sweepParked();
    const HandleId id = transfers_.insert(std::move(made).value());
    if (id == 0) {
        return Status::notAllowed("agent \"" + self().name +
                                  "\": too many transfers (16777216) are prepared");
    }
    return id;
}

Result<HandleId> AgentImpl::prepareTransfer(OpType op,
                                            const DescriptorList& local_list,
                                            const DescriptorList& remote_list,
                                            const std::string& peer_name,
                                            const TransferOptions& options) {
    Result<std::shared_ptr<Peer>> found = findPeer(peer_name);
    if (!found.ok()) {
        return found.status();
    }
    const std::shared_ptr<Peer>& other = found.value();
    // From storage to memory of this agent is the same as the other way round.
    const bool swap = !memory::isMemory(local_list.type()) &&
                      memory::isMemory(remote_list.type()) && other == nullptr;
    const DescriptorList& local = swap ? remote_list : local_list;
    const DescriptorList& remote = swap ? local_list : remote_list;
    if (swap) {
        op = op == OpType::READ ? OpType::WRITE : OpType::READ;
    }
    const auto attempt = [&](const Loaded& loaded) -> Result<std::unique_ptr<Transfer>> {
        Result<Side> near = resolveOwn(local, *loaded);
        if (!near.ok()) {
            return near.status();
        }
        Result<Side> far =
            other == nullptr ? resolveOwn(remote, *loaded) : resolvePeer(remote, *loaded, other);
        if (!far.ok()) {
            return far.status();
        }
        Result<memory::PlanRuns> runs =
            memory::pairSides(near.value()->side, far.value()->side, !options.skipDescMerge);
        if (!runs.ok()) {
            return runs.status();
        }
        return Transfer::create(
            {op, std::move(runs).value(), near.value(), far.value(), loaded, options.notification},
            shared_);
    };
    return tryBackends(options, local.type(), remote.type(), other == nullptr, attempt);
}

Result<HandleId> AgentImpl::prepareList(const std::string& peer_name,
                                        DescriptorList list,
                                        const Names& backends) {
    auto prepared = std::make_unique<PreparedSide>();
    prepared->peerName = peer_name;
    prepared->backends = backends;
    if (!peer_name.empty()) {
        Result<std::shared_ptr<Peer>> found = findPeer(peer_name);
        if (!found.ok()) {
            return found.status();
        }
        prepared->peer = found.value();
    }
    const MemType type = list.type();
    prepared->list = std::move(list);
    prepared->list.compress();
    Result<LoadedList> chosen = choose(backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    // One backend must be able to take it; others are resolved when a transfer asks for them.
    Status first = Status::notSupported("no backend of agent \"" + self().name + "\" takes " +
                                        memTypeName(type));
    bool tried = false;
    for (const Loaded& loaded : chosen.value()) {
        if (!loaded->holds(type)) {
            continue;
        }
        Result<Side> side = resolveSide(*prepared, *loaded);
        if (side.ok()) {
            return lists_.insert(std::move(prepared));
        }
        first = tried ? first : side.status();
        tried = true;
    }
    return first;
}

Result<AgentImpl::Side> AgentImpl::resolveSide(PreparedSide& side,
                                               const LoadedBackend& loaded) const {
    {
        MutexLock lock(side.mutex);
        if (const auto found = side.resolved.find(loaded.index); found != side.resolved.end()) {
            return found->second;
        }
    }
    Result<Side> made = side.peer == nullptr ? resolveOwn(side.list, loaded)
                                             : resolvePeer(side.list, loaded, side.peer);
    if (made.ok()) {
        MutexLock lock(side.mutex);
        side.resolved.emplace(loaded.index, made.value());
    }
    return made;
}

template <typename Index>
Result<HandleId> AgentImpl::prepareTransfer(OpType op,
                                            HandleId local_id,
                                            std::span<const Index> local_indices,
                                            HandleId remote_id,
                                            std::span<const Index> remote_indices,
                                            const TransferOptions& options) {
    auto local = lists_.find(local_id);
    auto remote = lists_.find(remote_id);
    if (!local || !remote) {
        return Status::invalidParam(std::string("the ") + (local ? "remote" : "local") +
                                    " prepared list was released, or is of another agent");
    }
    if (!local->peerName.empty()) {
        return Status::invalidParam("the local side was prepared for agent \"" + local->peerName +
                                    "\"; prepare it with an empty name");
    }
    if (remote->peer && remote->peer->gone.load(std::memory_order_acquire)) {
        return Status::notFound("agent \"" + remote->peerName +
                                "\" was removed or restarted since the list was prepared");
    }
    const bool all = local_indices.empty() && remote_indices.empty();
    const auto pair = [&](const Loaded& loaded, Side near,
                          Side far) -> Result<std::unique_ptr<Transfer>> {
        const bool merge = !options.skipDescMerge;
        Result<memory::PlanRuns> runs =
            all ? memory::pairSides(near->side, far->side, merge)
                : memory::pairIndices<Index>(near->side, local_indices, far->side, remote_indices,
                                             merge);
        if (!runs.ok()) {
            return runs.status();
        }
        return Transfer::create({op, std::move(runs).value(), std::move(near), std::move(far),
                                 loaded, options.notification},
                                shared_);
    };
    const bool free_choice = options.backends.empty();
    if (free_choice) {
        const PreparedSide::Pairing last = local->pairedWith(remote_id);
        if (Side far = last.far.lock(); far != nullptr) {
            Result<std::unique_ptr<Transfer>> made = pair(last.loaded, last.near, std::move(far));
            if (made.ok()) {
                return enter(std::move(made));
            }
        }
    }
    const auto attempt = [&](const Loaded& loaded) -> Result<std::unique_ptr<Transfer>> {
        Result<Side> near = resolveSide(*local, *loaded);
        if (!near.ok()) {
            return near.status();
        }
        Result<Side> far = resolveSide(*remote, *loaded);
        if (!far.ok()) {
            return far.status();
        }
        Result<std::unique_ptr<Transfer>> made = pair(loaded, near.value(), far.value());
        if (made.ok() && free_choice) {
            MutexLock lock(local->mutex);
            local->last = {remote_id, loaded, near.value(), far.value()};
        }
        return made;
    };
    TransferOptions chosen = options;
    if (chosen.backends.empty()) {
        chosen.backends = local->backends.empty() ? remote->backends : local->backends;
    }
    return tryBackends(chosen, local->list.type(), remote->list.type(), remote->peer == nullptr,
                       attempt);
}

template Result<HandleId> AgentImpl::prepareTransfer<int32_t>(OpType,
                                                              HandleId,
                                                              std::span<const int32_t>,
                                                              HandleId,
                                                              std::span<const int32_t>,
                                                              const TransferOptions&);
template Result<HandleId> AgentImpl::prepareTransfer<int64_t>(OpType,
                                                              HandleId,
                                                              std::span<const int64_t>,
                                                              HandleId,
                                                              std::span<const int64_t>,
                                                              const TransferOptions&);

}  // namespace nixl::detail
