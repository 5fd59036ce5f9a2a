// See attachment.h: memory of the peer that is mapped here, and ours that it maps. Both sides of
// the frames MAP_REQUEST and MAP_REPLY. One request of each side is under way at a time.
#include <iterator>
#include <utility>

#include "device/devices.h"
#include "lanes/host/attachment.h"
#include "lanes/host/device_card.h"
#include "lanes/host/shared_memory.h"
#include "session/target_access.h"

namespace nixl::peer {

namespace {

constexpr uint32_t kCardMark = 1U << 16;

}  // namespace

std::vector<RegionMapPtr> HostAttachment::mapRegions(const TransferPlan& plan) {
    std::vector<RegionMapPtr> maps(plan.remoteRegions.size());
    const bool single = maps.size() == 1;
    const MutexLock lock(mutex_);
    for (const PlanRun& run : plan.runs) {
        if (maps[run.remoteRegion] == nullptr) {
            const PlanRegion& region = plan.remoteRegions[run.remoteRegion];
            maps[run.remoteRegion] =
                maps_.want(region.id, region.generation, region.type == MemType::VRAM);
        }
        if (single) {
            break;
        }
    }
    askMaps();
    return maps;
}

void HostAttachment::whenMapped(Done done) {
    {
        const MutexLock lock(mutex_);
        if (connection_ != 0 && maps_.pending()) {
            mapWaiting_.push_back(std::exchange(done, nullptr));
        }
    }
    if (done) {
        done({});
    }
}

// Sends the next request where one is due.
void HostAttachment::askMaps() {
    const auto control = control_.lock();
    if (control == nullptr || connection_ == 0 || host_ == nullptr ||
        !host_->canPassDescriptors()) {
        return;
    }
    const GrantsPtr grants = control->grants();
    if (grants == nullptr) {
        return;
    }
    MapRequest request;
    Grant grant;
    request.regions = maps_.nextRequest(*grants, grant);
    if (request.regions.empty()) {
        return;
    }
    request.grant = {grant.id, grantProof(grant.key, key_)};
    base::ByteWriter body;
    request.encode(body);
    if (!control->sendFrame(connection_, FrameType::MAP_REQUEST, body.bytes(), {})) {
        maps_.connectionLost();  // which the link is about to tell
    }
}

void HostAttachment::violated(const Status& why) {
    if (const auto control = control_.lock()) {
        control->violated(why);
    }
}

void HostAttachment::onMapRequest(uint64_t connection, std::string_view body) {
    auto request = MapRequest::decode(body);
    if (!request.ok()) {
        return violated(request.status());
    }
    const auto owner = context_.owner.lock();
    if (owner == nullptr) {
        return;
    }
    const GrantProof& grant = request.value().grant;
    const auto key = context_.access.grantKey(grant.grant);
    Status status;
    {
        const MutexLock lock(mutex_);
        if (connection != connection_) {
            return;
        }
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
    context_.pool.run(
        [self = shared_from_this(), owner, connection, asked = std::move(request).value()] {
            self->answerMaps(asked, connection);
        });
}

// Offers memory of a GPU: its card's index counts from the first card, until it is known how many
// files come before.
static void offerDevice(const memory::Region& own,
                        MapReply::Region& answer,
                        std::vector<base::Fd>& cards) {
    Result<DeviceExport> made = device::devices().exportMemory(own.address, own.size);
    if (!made.ok()) {
        answer.reason = "GPU memory: " + made.status().message();
        return;
    }
    const Result<size_t> card = addDeviceCard(made.value(), cards);
    if (!card.ok()) {
        answer.reason = card.status().message();
        return;
    }
    answer.pieces.push_back(
        {own.address, own.size, 0, kCardMark + static_cast<uint32_t>(card.value())});
}

static void placeCards(MapReply& reply, size_t files, size_t cards) {
    for (MapReply::Region& answer : reply.regions) {
        if (answer.pieces.empty() || answer.pieces.front().file < kCardMark) {
            continue;
        }
        answer.pieces.front().file += static_cast<uint32_t>(files) - kCardMark;
        if (files + cards > kMaxMapFiles) {
            answer.pieces.clear();
            answer.reason = "too much memory to be offered at once";
        }
    }
}

void HostAttachment::answerMaps(const MapRequest& request, uint64_t connection) {
    SharedMemory memory;
    MapReply reply;
    std::vector<base::Fd> cards;  // of GPU memory; after the other files
    std::vector<RegionPin> pins;  // none of them is deregistered before the answer is on its way
    for (const MapRequest::Region& asked : request.regions) {
        MapReply::Region& answer = reply.regions.emplace_back();
        answer.id = asked.id;
        answer.generation = asked.generation;
        auto region =
            context_.access.region(request.grant.grant, asked.id, asked.generation, OpType::WRITE);
        if (!region.ok() || !region.value()->pin()) {
            answer.reason = region.ok() ? "it is being deregistered" : region.status().message();
            continue;
        }
        const memory::Region& own = *region.value();
        pins.emplace_back(region.value());
        if (own.type == MemType::VRAM) {
            offerDevice(own, answer, cards);
            continue;
        }
        if (own.type != MemType::DRAM) {
            answer.reason = "it is not memory";
            continue;
        }
        SharedMemory::Found found = memory.find(own.address, own.size);
        answer.reason = std::move(found.reason);
        answer.pieces = std::move(found.pieces);
    }
    std::vector<base::Fd> files = memory.takeFiles();
    placeCards(reply, files.size(), cards.size());
    if (files.size() + cards.size() <= kMaxMapFiles) {
        std::move(cards.begin(), cards.end(), std::back_inserter(files));
    }
    reply.files = static_cast<uint32_t>(files.size());
    base::ByteWriter body;
    reply.encode(body);
    const auto control = control_.lock();
    // One lock over both: a notice of what is deregistered follows the answer.
    const MutexLock lock(mutex_);
    if (control == nullptr || connection != connection_) {
        return;
    }
    answering_ = false;
    for (const MapReply::Region& answer : reply.regions) {
        if (!answer.pieces.empty()) {
            given_[answer.id] = answer.generation;
        }
    }
    control->sendFrame(connection, FrameType::MAP_REPLY, body.bytes(), std::move(files));
}

void HostAttachment::onMapReply(uint64_t connection,
                                std::string_view body,
                                const std::vector<base::Fd>& descriptors) {
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
        if (connection != connection_) {
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

void HostAttachment::announceRevoked(std::span<const std::pair<uint64_t, uint32_t>> regions) {
    const auto control = control_.lock();
    MapReply notice;
    notice.answers = false;
    const MutexLock lock(mutex_);
    const auto send = [&]() NIXL_REQUIRES(mutex_) {
        base::ByteWriter body;
        notice.encode(body);
        control->sendFrame(connection_, FrameType::MAP_REPLY, body.bytes(), {});
        notice.regions.clear();
    };
    for (const auto& [id, generation] : regions) {
        const auto found = given_.find(id);
        if (found == given_.end() || found->second != generation) {
            continue;
        }
        given_.erase(found);
        if (control == nullptr || connection_ == 0) {
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
}

}  // namespace nixl::peer
