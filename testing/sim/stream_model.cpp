// See stream_model.h.
#include "testing/sim/stream_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nixl::sim {

using namespace peer;  // NOLINT(google-build-using-namespace)

StreamModel::StreamModel(World& world, uint64_t region, bool calm)
    : world_(world),
      region_(region),
      calm_(calm),
      remote_(kSlots * kSlotBytes),
      local_(kSlots * kSlotBytes) {
    world_.access.enter(region_, remote_.data(), remote_.size());
}

void StreamModel::open() {
    const base::Digest key{7};
    client_ = std::make_unique<StreamClient>("bob", key);
    target_ = std::make_unique<StreamTarget>(world_.access, key);
    toTarget_.clear();
    toInitiator_.clear();
}

void StreamModel::fillSlot(size_t at) {
    for (size_t i = at * kSlotBytes; i < (at + 1) * kSlotBytes; ++i) {
        local_[i] = static_cast<char>(world_.random());
        if (!revoked_) {
            remote_[i] = static_cast<char>(world_.random());
        }
    }
}

std::optional<size_t> StreamModel::submit() {
    if (client_ == nullptr) {
        open();
    }
    const size_t at = world_.pick(kSlots);
    Slot& slot = slots_[at];
    if (slot.busy || slot.held || !client_->hasRoom()) {
        return std::nullopt;
    }
    slot.busy = true;
    slot.canary = false;
    slot.op = world_.pick(2) == 0 ? OpType::READ : OpType::WRITE;
    fillSlot(at);
    const auto local = reinterpret_cast<uint64_t>(local_.data() + at * kSlotBytes);
    const auto remote = reinterpret_cast<uint64_t>(remote_.data() + at * kSlotBytes);
    Request request;
    request.op = slot.op;
    request.grant = grantId(kGrant);
    request.flags = world_.pick(2) == 0 ? kRequestChecksum : 0;
    request.regions = {{region_, 1}};
    const uint64_t pieces = 1 + world_.pick(3);
    const uint64_t size = kSlotBytes / pieces;
    request.bytes = size * pieces;
    request.runs = {{remote, size, size, pieces, 0}};
    const std::vector<MemoryRun> here = {{local, size, size, pieces, 0}};
    client_->submit(
        {std::make_shared<PreparedRequest>(request, kGrant, here, 0), ++world_.nextId, slot.owner});
    ++world_.outcome.transfers;
    return slot.op == OpType::WRITE ? std::optional(at) : std::nullopt;
}

template <typename From>
void StreamModel::produce(From& from, std::string& pipe) {
    if (pipe.size() > kPipeLimit) {
        return;
    }
    iovec vectors[8];
    const size_t count = from.output(vectors, 1 + world_.pick(8));
    size_t limit = 1 + world_.pick(9000);
    size_t put = 0;
    for (size_t i = 0; i < count && limit > 0; ++i) {
        const size_t n = std::min(vectors[i].iov_len, limit);
        pipe.append(static_cast<char*>(vectors[i].iov_base), n);
        put += n;
        limit -= n;
        if (n < vectors[i].iov_len) {
            break;
        }
    }
    from.sent(put);
}

template <typename To>
void StreamModel::consume(To& to, std::string& pipe) {
    iovec vectors[8];
    const size_t count = to.inputSpace(vectors, 2 + world_.pick(6));
    if (count == 0) {
        return;
    }
    size_t limit = std::min<size_t>(pipe.size(), 1 + world_.pick(9000));
    size_t got = 0;
    for (size_t i = 0; i < count && limit > 0; ++i) {
        const size_t n = std::min(vectors[i].iov_len, limit);
        std::memcpy(vectors[i].iov_base, pipe.data() + got, n);
        got += n;
        limit -= n;
    }
    pipe.erase(0, got);
    if (const Status status = to.received(got); !status.ok()) {
        world_.broken("a data connection between friends violated the protocol: " +
                      status.message());
    }
}

void StreamModel::move() {
    if (client_ == nullptr) {
        return;
    }
    switch (world_.pick(4)) {
        case 0:
            if (client_->wantsOutput()) {
                produce(*client_, toTarget_);
            }
            break;
        case 1:
            consume(*target_, toTarget_);
            break;
        case 2:
            if (target_->wantsOutput()) {
                produce(*target_, toInitiator_);
            }
            break;
        default:
            consume(*client_, toInitiator_);
            break;
    }
    finishParts();
}

void StreamModel::finishParts() {
    for (FinishedPart& finished : client_->takeFinished()) {
        const auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& one) {
            return one.owner == finished.part.owner;
        });
        if (slot == slots_.end() || !slot->busy) {
            world_.broken("a transfer ended twice");
            return;
        }
        slot->busy = false;
        const auto at = static_cast<size_t>(slot - slots_.begin());
        if (!finished.status.ok()) {
            if (calm_ && !slot->canary && !world_.targetRestarted) {
                world_.broken("another peer's fault ended a transfer: " +
                              finished.status.message());
            }
            continue;
        }
        if (slot->canary) {
            world_.broken("a canceled transfer is DONE");
        } else if (std::memcmp(local_.data() + at * kSlotBytes, remote_.data() + at * kSlotBytes,
                               finished.part.request->bytes) != 0) {
            world_.broken("DONE, and the bytes are not there");
        } else if (slot->op == OpType::WRITE) {
            slot->held = true;
            done_.push_back(at);
        }
    }
}

std::vector<size_t> StreamModel::takeDone() {
    return std::exchange(done_, {});
}

bool StreamModel::arrived(size_t slot) const {
    return std::memcmp(local_.data() + slot * kSlotBytes, remote_.data() + slot * kSlotBytes,
                       kSlotBytes) == 0;
}

void StreamModel::cancel() {
    const size_t at = world_.pick(kSlots);
    if (client_ == nullptr || !slots_[at].busy || slots_[at].canary) {
        return;
    }
    client_->cancel(slots_[at].owner.get());
    slots_[at].canary = true;
    std::memset(local_.data() + at * kSlotBytes, 'c', kSlotBytes);
    finishParts();
}

void StreamModel::revoke() {
    const memory::RegionPtr region = world_.access.get(region_);
    if (revoked_ || !region) {
        return;
    }
    revoked_ = true;
    if (world_.bug != Bug::NO_FENCE) {
        region->revoke();
        if (region->pins() != 0) {
            world_.broken("a region is pinned while nothing moves");
        }
    }
    fenced_ = remote_;
}

void StreamModel::fail() {
    if (client_ != nullptr) {
        client_->fail(Status::disconnected("cut"));
        finishParts();
        client_.reset();
        target_.reset();
    }
}

bool StreamModel::busy() const {
    return std::any_of(slots_.begin(), slots_.end(),
                       [](const Slot& slot) { return slot.busy || slot.held; });
}

void StreamModel::check() {
    if (revoked_ && fenced_ != remote_) {
        world_.broken("bytes changed after the region was deregistered");
    }
    for (size_t at = 0; at < kSlots; ++at) {
        if (slots_[at].canary) {
            const char* const begin = local_.data() + at * kSlotBytes;
            if (begin[0] != 'c' || std::memcmp(begin, begin + 1, kSlotBytes - 1) != 0) {
                world_.broken("bytes changed after a cancel returned");
            }
        }
    }
}

}  // namespace nixl::sim
