// See link.h: memory of the peer that is mapped here, and ours that it maps. Both sides of the
// frames MAP_REQUEST and MAP_REPLY. One request of each side is under way at a time.
#include <algorithm>
#include <utility>

#include "lanes/host/shared_memory.h"
#include "peer/engine_impl.h"
#include "peer/link.h"
#include "session/target_access.h"

namespace nixl::peer {

std::vector<RegionMapPtr> Link::mapRegions(const TransferPlan& plan) {
    std::vector<RegionMapPtr> maps(plan.remoteRegions.size());
    const bool single = maps.size() == 1;
    const MutexLock lock(mutex_);
    for (const PlanRun& run : plan.runs) {
        if (maps[run.remoteRegion] == nullptr) {
            const PlanRegion& region = plan.remoteRegions[run.remoteRegion];
            maps[run.remoteRegion] = maps_.want(region.id, region.generation);
        }
        if (single) {
            break;
        }
    }
    askMaps();
    return maps;
}

void Link::whenMapped(Done done) {
    {
        const MutexLock lock(mutex_);
        if (!detached_ && channel_ != nullptr && maps_.pending()) {
            mapWaiting_.push_back(std::exchange(done, nullptr));
        }
    }
    if (done) {
        done({});
    }
}

// Sends the next request where one is due.
void Link::askMaps() {
    if (detached_ || channel_ == nullptr || host_ == nullptr || !host_->canPassDescriptors() ||
        grants_ == nullptr) {
        return;
    }
    MapRequest request;
    Grant grant;
    request.regions = maps_.nextRequest(*grants_, grant);
    if (request.regions.empty()) {
        return;
    }
    request.grant = {grant.id, grantProof(grant.key, key_)};
    base::ByteWriter body;
    request.encode(body);
    session_.sendFrame(FrameType::MAP_REQUEST, body.bytes());
    flush();
}

void Link::violated(const Status& why) {
    engine_.reactor.run([self = shared_from_this(), why] { self->controlLost(why); });
}

void Link::onMapRequest(std::string_view body) {
    auto request = MapRequest::decode(body);
    if (!request.ok()) {
        return violated(request.status());
    }
    const GrantProof& grant = request.value().grant;
    const auto key = engine_.access.grantKey(grant.grant);
    uint64_t connection = 0;
    Status status;
    {
        const MutexLock lock(mutex_);
        if (detached_ || channel_ == nullptr) {
            return;
        }
        connection = connection_;
        if (std::exchange(answering_, true)) {
            status = Status::invalidParam("MAP_REQUEST while another one is being answered");
        } else if (key && !base::equalSecret(base::asView(grantProof(*key, key_)),
                                             base::asView(grant.proof))) {
            status = Status::invalidParam("MAP_REQUEST with a wrong proof of its grant");
        }
    }
    if (!status.ok()) {
        return violated(status);
    }
    // Reading the lists of mappings and descriptors takes too long for whoever reads the session.
    engine_.pool.run([self = shared_from_this(), engine = engine_.shared_from_this(), connection,
                      asked = std::move(request).value()] { self->answerMaps(asked, connection); });
}

void Link::answerMaps(const MapRequest& request, uint64_t connection) {
    SharedMemory memory;
    MapReply reply;
    std::vector<RegionPin> pins;  // none of them is deregistered before the answer is on its way
    for (const MapRequest::Region& asked : request.regions) {
        MapReply::Region& answer = reply.regions.emplace_back();
        answer.id = asked.id;
        answer.generation = asked.generation;
        auto region =
            engine_.access.region(request.grant.grant, asked.id, asked.generation, OpType::WRITE);
        if (!region.ok() || !region.value()->pin()) {
            answer.reason = region.ok() ? "it is being deregistered" : region.status().message();
            continue;
        }
        const memory::Region& own = *region.value();
        pins.emplace_back(region.value());
        if (own.type != MemType::DRAM) {
            answer.reason = "it is not host memory";
            continue;
        }
        SharedMemory::Found found = memory.find(own.address, own.size);
        answer.reason = std::move(found.reason);
        answer.pieces = std::move(found.pieces);
    }
    std::vector<base::Fd> files = memory.takeFiles();
    reply.files = static_cast<uint32_t>(files.size());
    base::ByteWriter body;
    reply.encode(body);
    const MutexLock lock(mutex_);
    if (detached_ || channel_ == nullptr || connection != connection_) {
        return;
    }
    answering_ = false;
    for (const MapReply::Region& answer : reply.regions) {
        if (!answer.pieces.empty()) {
            given_[answer.id] = answer.generation;
        }
    }
    session_.sendFrame(FrameType::MAP_REPLY, body.bytes());
    std::move(files.begin(), files.end(), std::back_inserter(outDescriptors_));
    flush();
}

void Link::onMapReply(std::string_view body, const std::vector<base::Fd>& descriptors) {
    auto reply = MapReply::decode(body);
    if (!reply.ok()) {
        return violated(reply.status());
    }
    if (reply.value().files != descriptors.size()) {
        for (MapReply::Region& region : reply.value().regions) {
            region.pieces.clear();
            region.reason = "its descriptors did not arrive: the limit of open files is reached";
        }
    }
    Status status;
    std::vector<Done> waiting;
    {
        const MutexLock lock(mutex_);
        if (channel_ == nullptr) {
            return;
        }
        status = maps_.take(reply.value(), descriptors);
        askMaps();
        if (!maps_.pending()) {
            waiting.swap(mapWaiting_);
        }
    }
    if (!status.ok()) {
        violated(status);
    }
    for (const Done& done : waiting) {
        done({});
    }
}

void Link::announceRevoked(std::span<const std::pair<uint64_t, uint32_t>> regions) {
    MapReply notice;
    notice.answers = false;
    const MutexLock lock(mutex_);
    const auto send = [&]() NIXL_REQUIRES(mutex_) {
        base::ByteWriter body;
        notice.encode(body);
        session_.sendFrame(FrameType::MAP_REPLY, body.bytes());
        notice.regions.clear();
    };
    for (const auto& [id, generation] : regions) {
        const auto found = given_.find(id);
        if (found == given_.end() || found->second != generation) {
            continue;
        }
        given_.erase(found);
        if (detached_ || channel_ == nullptr) {
            continue;  // it sees for itself when it comes back
        }
        notice.regions.push_back({id, generation, "the region has been deregistered", {}});
        if (notice.regions.size() == kMaxMapRegions) {
            send();
        }
    }
    if (!notice.regions.empty()) {
        send();
    }
    if (!detached_) {
        flush();
    }
}

}  // namespace nixl::peer
