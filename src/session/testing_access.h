// For the tests of this folder: a NetworkAccess over regions that the test enters.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "session/network_access.h"
#include "session/wire.h"

namespace nixl::peer {

class TestAccess : public NetworkAccess {
  public:
    explicit TestAccess(const Key& grant = {1, 2, 3}) : grant_(grant) {}

    void enter(uint64_t id, void* address, uint64_t size, uint32_t generation = 1) {
        const std::lock_guard<std::mutex> lock(mutex_);
        RegistrationList::Entry entry;
        entry.address = reinterpret_cast<uint64_t>(address);
        entry.size = size;
        regions_[id] = memory::RegionPtr(new memory::Region(MemType::DRAM, entry, id, generation));
    }
    memory::RegionPtr get(uint64_t id) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return regions_[id];
    }
    const Key& grant() const { return grant_; }

    std::optional<Key> grantKey(GrantId grant) override {
        return grant == grantId(grant_) ? std::optional(grant_) : std::nullopt;
    }
    Result<memory::RegionPtr> region(GrantId grant,
                                     uint64_t id,
                                     uint32_t generation,
                                     OpType /*op*/) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = regions_.find(id);
        if (grant != grantId(grant_) || found == regions_.end() ||
            found->second->generation != generation || found->second->revoked()) {
            return Status::notFound("no region " + std::to_string(id));
        }
        return found->second;
    }
    void deliver(const Identity& from, std::string message, std::shared_ptr<void> credit) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        arrived_.emplace_back(from.name, std::move(message));
        credits_.push_back(std::move(credit));
    }
    void peerLost(const Identity& peer, const Status& /*why*/) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        lost_.push_back(peer.name);
    }

    // Takes what arrived, and gives the senders their credit back.
    std::vector<std::pair<std::string, std::string>> take() {
        std::vector<std::shared_ptr<void>> credits;
        const std::lock_guard<std::mutex> lock(mutex_);
        credits.swap(credits_);
        return std::exchange(arrived_, {});
    }
    size_t lost() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return lost_.size();
    }

  private:
    const Key grant_;
    std::mutex mutex_;
    std::map<uint64_t, memory::RegionPtr> regions_;
    std::vector<std::pair<std::string, std::string>> arrived_;
    std::vector<std::shared_ptr<void>> credits_;
    std::vector<std::string> lost_;
};

}  // namespace nixl::peer
