// AgentImpl: metadata blobs, the peers learnt from them, notifications to them.
#include <algorithm>
#include <random>

#include "agent/agent_impl.h"
#include "base/log.h"

namespace nixl::detail {

using agent::Peer;
using memory::RemoteRegion;

namespace {

std::vector<uint64_t> idsOf(const std::vector<RemoteRegion>& regions) {
    std::vector<uint64_t> ids;
    ids.reserve(regions.size());
    for (const RemoteRegion& region : regions) {
        ids.push_back(region.id);
    }
    return ids;
}

// The grants of an agent when `blob` is added; `known`: what the same one has said before, if so.
peer::GrantsPtr grantsWith(const metadata::Blob& blob, const Peer* known) {
    if (!blob.partial) {
        return std::make_shared<peer::Grants>(blob.grant);
    }
    const std::vector<uint64_t> regions = idsOf(blob.regions);
    if (known == nullptr) {
        return std::make_shared<peer::Grants>(blob.grant, regions);
    }
    auto both = std::make_shared<peer::Grants>(*known->grants);
    both->add(blob.grant, regions);
    return both;
}

// Adds what a partial blob tells to what is known of the same agent.
void mergeInto(metadata::Blob& blob, const Peer& known) {
    if (blob.session.empty()) {
        blob.session = known.session;
    }
    std::vector<uint32_t> bits(known.backends.size());
    for (size_t i = 0; i < known.backends.size(); ++i) {
        const auto same = std::find_if(blob.backends.begin(), blob.backends.end(),
                                       [&](const metadata::BackendSection& one) {
                                           return one.name == known.backends[i].name;
                                       });
        bits[i] = 1U << (same - blob.backends.begin());
        if (same == blob.backends.end()) {
            blob.backends.push_back(known.backends[i]);
        } else if (same->connection.empty()) {
            same->connection = known.backends[i].connection;
        }
    }
    std::vector<uint64_t> fresh = idsOf(blob.regions);
    fresh.insert(fresh.end(), blob.removed.begin(), blob.removed.end());
    std::sort(fresh.begin(), fresh.end());
    for (size_t i = 0; i < known.regions.size(); ++i) {
        RemoteRegion region = known.regions.at(i);
        if (std::binary_search(fresh.begin(), fresh.end(), region.id)) {
            continue;
        }
        uint32_t mapped = 0;
        for (size_t bit = 0; bit < bits.size(); ++bit) {
            mapped |= (region.backends >> bit & 1) != 0 ? bits[bit] : 0;
        }
        region.backends = mapped;
        blob.regions.push_back(region);
    }
}

}  // namespace

Status AgentImpl::fillBlob(metadata::Blob& blob,
                           const LoadedList& loaded_list,
                           const std::vector<uint64_t>* only) const {
    blob.name = self().name;
    blob.incarnation = self().incarnation;
    if (blob.connection && engine() != nullptr) {
        blob.session = engine()->connectionInfo();
    }
    LoadedList remote;
    for (const Loaded& loaded : loaded_list) {
        if (!loaded->backend->supportsRemote()) {
            continue;
        }
        metadata::BackendSection section{loaded->name, {}};
        // What changed is for those who have the rest.
        RemoteSupport* const support = blob.base == 0 ? loaded->backend->remote() : nullptr;
        if (support != nullptr) {
            Result<std::string> connection = support->connectionInfo();
            if (!connection.ok()) {
                return connection.status();
            }
            section.connection = std::move(connection).value();
        }
        blob.backends.push_back(std::move(section));
        remote.push_back(loaded);
    }
    Status failed;
    shared_->regions().forEach([&](const memory::Region& region) {
        if (only != nullptr && !std::binary_search(only->begin(), only->end(), region.id)) {
            return;
        }
        RemoteRegion entry{region.address,    region.size, region.deviceId, region.id,
                           region.generation, 0,           region.type};
        for (uint32_t bit = 0; bit < remote.size(); ++bit) {
            for (const memory::Region::Holding& held : region.holdings) {
                if (held.backend != remote[bit]->index) {
                    continue;
                }
                entry.backends |= 1U << bit;
                RemoteSupport* const support = remote[bit]->backend->remote();
                if (support == nullptr) {
                    continue;
                }
                Result<std::string> key = support->exportMemory(*held.memory);
                if (key.ok() && key.value().empty()) {
                    continue;
                }
                if (key.ok()) {
                    blob.keys.push_back({bit, region.id, std::move(key).value()});
                } else if (failed.ok()) {
                    failed = key.status();
                }
            }
        }
        if (entry.backends != 0) {
            blob.regions.push_back(entry);
        }
    });
    return failed;
}

Result<std::string> AgentImpl::metadata() {
    metadata::Blob blob;
    blob.grant = shared_->grant();
    blob.version = metadataVersion();  // so that what was published earlier does not replace it
    NIXL_RETURN_IF_ERROR(fillBlob(blob, loadedBackends(), nullptr));
    return metadata::encodeBlob(blob);
}

Result<std::string> AgentImpl::partialMetadata(const DescriptorList& list,
                                               bool connection_info,
                                               const Names& backends) {
    Result<LoadedList> chosen = choose(backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    std::vector<uint64_t> ids;
    Status first = Status::notFound("no backend of agent \"" + self().name +
                                    "\" that reaches peers has these descriptors registered");
    bool found = list.empty();
    for (const Loaded& loaded : chosen.value()) {
        if (!loaded->backend->supportsRemote() || list.empty()) {
            continue;
        }
        Result<Side> side = resolveOwn(list, *loaded);
        if (!side.ok()) {
            first = found ? first : side.status();
            continue;
        }
        found = true;
        for (const memory::RegionUse& use : side.value()->uses) {
            ids.push_back(use.region->id);
        }
    }
    if (!found) {
        return first;
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    metadata::Blob blob;
    blob.partial = true;
    blob.connection = connection_info;
    blob.grant = shared_->partialGrant(ids);
    NIXL_RETURN_IF_ERROR(fillBlob(blob, chosen.value(), &ids));
    return metadata::encodeBlob(blob);
}

Status AgentImpl::addToBackends(const Peer& peer) const {
    const PlanPeer who{peer.identity.name, peer.identity.incarnation, false};
    for (const metadata::BackendSection& section : peer.backends) {
        Result<Loaded> mine = loaded(section.name);
        if (!mine.ok() || mine.value()->backend->remote() == nullptr) {
            continue;
        }
        NIXL_RETURN_IF_ERROR(mine.value()->backend->remote()->addPeer(who, section.connection));
    }
    return {};
}

Result<std::string> AgentImpl::addPeer(std::string_view bytes) {
    Result<metadata::Blob> decoded = metadata::decodeBlob(bytes);
    if (!decoded.ok()) {
        return decoded.status();
    }
    std::string name = decoded.value().name;
    Result<Taken> taken = takeBlob(std::move(decoded).value(), false);
    if (!taken.ok()) {
        return taken.status();
    }
    if (taken.value() == Taken::MISSED) {
        return Status::mismatch("metadata of agent \"" + name +
                                "\" that tells only what changed since a state that is not known "
                                "here");
    }
    addedByHand(name);
    return name;
}

Result<AgentImpl::Taken> AgentImpl::takeBlob(metadata::Blob blob, bool needs_grant) {
    const std::string name = blob.name;
    if (name == self().name) {
        if (blob.incarnation == self().incarnation) {
            return Taken::BEFORE;  // the own name means this agent
        }
        return Status::notAllowed("metadata of another agent named \"" + name +
                                  "\": an agent's own name always means itself");
    }
    MutexLock adding(addPeerMutex_);
    const std::shared_ptr<Peer> known = peer(name);
    const bool same = known != nullptr && known->identity.incarnation == blob.incarnation;
    if (needs_grant && (!same || known->grants->forSession().key != blob.grant)) {
        return Status::notAllowed("metadata for agent \"" + name +
                                  "\", which was added here already, does not carry the grant "
                                  "that was in it");
    }
    const uint64_t had = same ? known->version : 0;
    if (blob.version != 0 && blob.version <= had) {
        return Taken::BEFORE;
    }
    if (blob.partial && blob.version != 0 && (had == 0 || blob.base > had)) {
        return Taken::MISSED;
    }
    peer::GrantsPtr grants = grantsWith(blob, same ? known.get() : nullptr);
    if (same && blob.partial) {
        mergeInto(blob, *known);
    }
    auto fresh = std::make_shared<Peer>();
    fresh->identity = {name, blob.incarnation};
    fresh->version = blob.version != 0 || !blob.partial ? blob.version : had;
    fresh->session = std::move(blob.session);
    fresh->grants = std::move(grants);
    fresh->backends = std::move(blob.backends);
    fresh->regions = memory::RemoteRegions(std::move(blob.regions));
    if (same) {
        fresh->keys = known->keys;
    }
    for (const uint64_t region : blob.removed) {
        std::erase_if(fresh->keys, [&](const auto& one) { return one.first.second == region; });
    }
    for (metadata::RegionKey& key : blob.keys) {
        fresh->keys[{key.backend, key.region}] = std::move(key.key);
    }
    NIXL_RETURN_IF_ERROR(addToBackends(*fresh));
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        NIXL_RETURN_IF_ERROR(sessions->addPeer(fresh->identity, fresh->session, fresh->grants));
    }
    std::shared_ptr<Peer> superseded;
    {
        WriteLock lock(peersMutex_);
        std::shared_ptr<Peer>& place = peers_[name];
        if (place != nullptr && place->identity.incarnation != blob.incarnation) {
            place->gone.store(true, std::memory_order_release);
            superseded = place;
        }
        place = std::move(fresh);
    }
    if (superseded != nullptr) {
        dropConnections(superseded->identity);
    }
    fetches_.forget(name);
    if (known == nullptr && (central_ == nullptr || !central_->has(name))) {
        peerChanged(name, true);
    }
    return Taken::NOW;
}

Status AgentImpl::removePeer(const std::string& name) {
    std::shared_ptr<Peer> removed;
    {
        WriteLock lock(peersMutex_);
        const auto found = peers_.find(name);
        if (found == peers_.end() && central_ != nullptr && central_->has(name)) {
            central_->forget(name);  // it was never taken in
            return {};
        }
        if (found == peers_.end()) {
            return Status::notFound("agent \"" + self().name + "\" has no metadata of agent \"" +
                                    name + "\"");
        }
        removed = std::move(found->second);
        peers_.erase(found);
    }
    removed->gone.store(true, std::memory_order_release);
    dropConnections(removed->identity);
    removedByHand(name);
    if (central_ == nullptr || !central_->has(name)) {
        peerChanged(name, false);
    }
    return {};
}

void AgentImpl::dropConnections(const peer::Identity& who) {
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        sessions->removePeer(who);
    }
    for (const Loaded& loaded : loadedBackends()) {
        if (RemoteSupport* support = loaded->backend->remote(); support != nullptr) {
            support->removePeer({who.name, who.incarnation, false});
        }
    }
}

std::shared_ptr<Peer> AgentImpl::peer(const std::string& name) const {
    ReadLock lock(peersMutex_);
    const auto found = peers_.find(name);
    return found == peers_.end() ? nullptr : found->second;
}

Result<bool> AgentImpl::hasPeer(const std::string& name, const DescriptorList* list) {
    if (name == self().name) {
        return true;
    }
    learnPeer(name);
    const std::shared_ptr<Peer> known = peer(name);
    if (known == nullptr || list == nullptr || list->empty()) {
        return known != nullptr;
    }
    for (size_t i = 0; i < known->backends.size(); ++i) {
        memory::ResolvedSide side;
        std::vector<const RemoteRegion*> used;
        if (known->regions.resolve(*list, 1U << i, name, side, used).ok()) {
            return true;
        }
    }
    refreshPeer(name);
    return false;
}

std::vector<std::string> AgentImpl::peerNames() const {
    std::vector<std::string> names;
    {
        ReadLock lock(peersMutex_);
        for (const auto& [name, known] : peers_) {
            names.push_back(name);
        }
    }
    if (central_ != nullptr) {
        for (std::string& name : central_->names()) {
            names.push_back(std::move(name));
        }
        std::sort(names.begin(), names.end());
        names.erase(std::unique(names.begin(), names.end()), names.end());
    }
    return names;
}

Status AgentImpl::connect(const std::string& name, const Names& backends) {
    Result<std::shared_ptr<Peer>> found = findPeer(name);
    if (!found.ok()) {
        return found.status();
    }
    Result<LoadedList> chosen = choose(backends);
    if (!chosen.ok()) {
        return chosen.status();
    }
    if (found.value() == nullptr) {
        return {};
    }
    const peer::Identity& who = found.value()->identity;
    for (const Loaded& loaded : chosen.value()) {
        if (RemoteSupport* support = loaded->backend->remote(); support != nullptr) {
            NIXL_RETURN_IF_ERROR(support->connect({who.name, who.incarnation, false}));
        }
    }
    if (peer::findLocalAgent(who.incarnation) != nullptr) {
        return {};
    }
    return engine() != nullptr ? connectSession(who) : Status();
}

Status AgentImpl::sendNotification(const std::string& name, std::string_view message) {
    if (message.size() > (1U << 20)) {
        return Status::invalidParam("a notification of " + std::to_string(message.size()) +
                                    " bytes; the limit is 1048576");
    }
    if (name == self().name) {
        shared_->deliver(self(), std::string(message), nullptr);
        return {};
    }
    peer::Identity who;
    learnPeer(name);
    if (const std::shared_ptr<Peer> known = peer(name); known != nullptr) {
        who = known->identity;
    } else if (const auto heard = shared_->lastSender(name); heard.has_value()) {
        who = *heard;  // whoever wrote to us can be answered
    } else {
        return findPeer(name).status();
    }
    if (const auto local = peer::findLocalAgent(who.incarnation); local != nullptr) {
        return local->deliverLocal(self(), std::string(message));
    }
    if (engine() != nullptr) {
        return notifySession(who, message);
    }
    for (const Loaded& loaded : loadedBackends()) {
        if (NotificationSupport* support = loaded->backend->notifications(); support != nullptr) {
            return support->sendNotification({who.name, who.incarnation, false}, message);
        }
    }
    return Status::disconnected("agent \"" + name +
                                "\" cannot be reached: it is not in this "
                                "process, or has ended");
}

void AgentImpl::notify(const peer::Identity& who,
                       std::string message,
                       std::function<void(Status)> done) {
    if (who == self()) {
        shared_->deliver(self(), std::move(message), nullptr);
        done({});
    } else if (const auto local = peer::findLocalAgent(who.incarnation); local != nullptr) {
        done(local->deliverLocal(self(), std::move(message)));
    } else if (engine() != nullptr) {
        // The engine keeps its copy only where it takes the message over.
        auto shared_done = std::make_shared<std::function<void(Status)>>(std::move(done));
        Status status = engine()->sendNotification(
            who, std::move(message),
            [shared_done](Status sent) { (*shared_done)(std::move(sent)); });
        if (!status.ok()) {
            (*shared_done)(std::move(status));
        }
    } else {
        done(Status::disconnected("agent \"" + who.name + "\" cannot be reached"));
    }
}

}  // namespace nixl::detail
