// See fabric_lane.h.
#include "fabric_lane.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>

#include "deal_runs.h"
#include "fabric_rail.h"
#include "lane_ending.h"

namespace nixl::fabric {
namespace {

// The rails of one agent. Owned by the lane, its memory and its transfers.
struct Rails {
    std::vector<std::shared_ptr<FabricRail>> all;
    std::shared_ptr<const FabricLibrary> library;
    std::atomic<size_t> next{0};

    void losePeer(const std::string& key, const Status& why) const {
        for (const auto& rail : all) {
            rail->losePeer(key, why, false);
        }
    }
    std::string devices() const {
        std::string text;
        for (const auto& rail : all) {
            text += (text.empty() ? "" : ", ") + rail->label();
        }
        return text;
    }
};
using RailsPtr = std::shared_ptr<Rails>;

// One registration, at every rail.
class FabricMemory final : public BackendMemory {
  public:
    explicit FabricMemory(RailsPtr rails) : rails_(std::move(rails)) {}
    ~FabricMemory() override {
        for (size_t i = 0; i < mapped_.size(); ++i) {
            rails_->all[i]->unmap(mapped_[i]);
        }
    }
    Status map(const MemoryRegion& region) {
        for (const auto& rail : rails_->all) {
            Result<Domain::Mapped> mapped = rail->map(region);
            if (!mapped.ok()) {
                return mapped.status();
            }
            mapped_.push_back(mapped.value());
        }
        return {};
    }
    void* descriptor(size_t rail) const { return mapped_[rail].descriptor; }
    std::vector<RailKey> keys() const {
        std::vector<RailKey> all;
        for (const Domain::Mapped& mapped : mapped_) {
            all.push_back(mapped.key);
        }
        return all;
    }

  private:
    const RailsPtr rails_;
    std::vector<Domain::Mapped> mapped_;
};

class FabricRemoteMemory final : public BackendMemory {
  public:
    explicit FabricRemoteMemory(std::vector<RailKey> keys) : keys_(std::move(keys)) {}
    const std::vector<RailKey>& keys() const { return keys_; }

  private:
    const std::vector<RailKey> keys_;
};

// The keys of a plan's remote region: a peer's, or of this agent itself. Empty: none.
std::vector<RailKey> keysOf(const PlanRegion& region) {
    if (const auto* const own = dynamic_cast<const FabricMemory*>(region.memory); own != nullptr) {
        return own->keys();
    }
    const auto* const remote = dynamic_cast<const FabricRemoteMemory*>(region.memory);
    return remote == nullptr ? std::vector<RailKey>() : remote->keys();
}

// A peer's rail for each of ours: of the same network where there is one.
std::vector<size_t> pairRails(const Rails& rails, const LaneAddress& peer) {
    std::vector<size_t> pairs;
    for (size_t i = 0; i < rails.all.size(); ++i) {
        std::vector<size_t> near;
        for (size_t other = 0; other < peer.rails.size(); ++other) {
            if (peer.rails[other].network == rails.all[i]->address().network) {
                near.push_back(other);
            }
        }
        pairs.push_back(near.empty() ? i % peer.rails.size() : near[i % near.size()]);
    }
    return pairs;
}

// Collects the ends of the parts of one post.
struct Gathering {
    std::mutex mutex;
    size_t left;
    Status status;
    std::function<void(Status)> done;

    void end(Status part) {
        {
            const std::lock_guard lock(mutex);
            // A lost peer says more than the cancel it may have met; what nobody confirmed counts.
            const bool says_more = status.ok() || status.code() == ErrorCode::CANCELED;
            if (!part.ok() && says_more &&
                status.message().find("remote_unconfirmed") == std::string::npos) {
                status = std::move(part);
            }
            if (--left != 0) {
                return;
            }
        }
        done(std::move(status));
    }
};

// Why the session with the peer of a post cannot be; it may be told before the post has jobs.
struct Verdict {
    std::mutex mutex;
    Status why;  // guarded by mutex

    Status told() {
        const std::lock_guard lock(mutex);
        return why;
    }
};

class FabricTransfer final : public BackendTransfer {
  public:
    FabricTransfer(const TransferPlan& plan,
                   RailsPtr rails,
                   const std::vector<size_t>& pairs,
                   uint64_t threshold,
                   PluginServices& services)
        : plan_(plan), rails_(std::move(rails)), services_(services), peer_(peerKey(plan.peer)) {
        parts_ = dealRuns(plan.runs, plan.bytes, rails_->all.size(), threshold, threshold);
        if (rails_->all.size() == 1) {
            parts_.assign(1, {plan.runs.begin(), plan.runs.end()});
        }
        const auto vram =
            std::find_if(plan.localRegions.begin(), plan.localRegions.end(),
                         [](const PlanRegion& region) { return region.type == MemType::VRAM; });
        if (vram != plan.localRegions.end()) {
            first_ = vram->deviceId % rails_->all.size();
        }
        keys_.resize(rails_->all.size());
        descriptors_.resize(rails_->all.size());
        for (size_t i = 0; i < rails_->all.size(); ++i) {
            for (const PlanRegion& region : plan.remoteRegions) {
                keys_[i].push_back(keysOf(region).at(pairs[i]));
            }
            for (const PlanRegion& region : plan.localRegions) {
                const auto* const own = dynamic_cast<const FabricMemory*>(region.memory);
                descriptors_[i].push_back(own == nullptr ? nullptr : own->descriptor(i));
            }
        }
    }

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        // Only the session tells that the peer is silent; libfabric would wait for ever.
        const auto verdict = std::make_shared<Verdict>();
        services_.connectPeer(plan_.peer, [rails = rails_, key = peer_, verdict](const Status& up) {
            if (!up.ok()) {
                {
                    const std::lock_guard lock(verdict->mutex);
                    verdict->why = up;
                }
                rails->losePeer(key, up);
            }
        });
        auto all = std::make_shared<Gathering>();
        all->left = parts_.size();
        all->done = [this, completion, message = std::string(notification),
                     has_notification](const Status& status) {
            moved(completion, status, has_notification ? &message : nullptr);
        };
        const size_t count = parts_.size();  // `this` may be gone once the last one runs
        const RailsPtr rails = rails_;
        const std::string key = peer_;
        const size_t first =
            first_.has_value() ? *first_ : rails->next.fetch_add(count, std::memory_order_relaxed);
        for (size_t i = 0; i < count; ++i) {
            const size_t rail = (first + i) % rails->all.size();
            FabricJob job;
            job.read = plan_.op == OpType::READ;
            job.peer = peer_;
            job.runs = parts_[i];
            job.keys = keys_[rail];
            job.descriptors = descriptors_[rail];
            job.completion = completion.get();
            job.done = [all](Status status) { all->end(std::move(status)); };
            job.tellUser = [this, completion](const Status& why) {
                completion->tellUser(naming(plan_.peer.name, why), {{0, plan_.bytes, 0, 0}});
            };
            rails->all[rail]->run(std::move(job));
        }
        if (const Status why = verdict->told(); !why.ok()) {
            rails->losePeer(key, why);  // it came before the jobs, which would wait for ever
        }
        return {};
    }

    void cancel() override {
        for (const auto& rail : rails_->all) {
            rail->wake();
        }
    }
    void help() override {
        const auto begin = Clock::now();
        bool moved = false;
        for (const auto& rail : rails_->all) {
            moved = rail->help() || moved;
        }
        if (const auto pollers = services_.pollers(); pollers != nullptr) {
            moved ? pollers->progressed(begin) : pollers->progress();
        }
    }
    TransferDescription describe() const override {
        std::string reason = "one-sided operations of libfabric " + rails_->library->version;
        if (parts_.size() > 1) {
            reason += " over " + std::to_string(parts_.size()) + " rails";
        }
        return {"fabric", std::move(reason), rails_->devices()};
    }

  private:
    void moved(const CompletionPtr& completion,
               const Status& status,
               const std::string* notification) {
        endPost(services_, plan_.peer, completion, status, allOf(plan_, status), notification);
    }

    const TransferPlan& plan_;
    const RailsPtr rails_;
    PluginServices& services_;
    const std::string peer_;
    std::optional<size_t> first_;
    std::vector<std::vector<PlanRun>> parts_;
    std::vector<std::vector<RailKey>> keys_;       // by rail and remote region
    std::vector<std::vector<void*>> descriptors_;  // by rail and local region
};

class FabricLane final : public Lane, public RemoteSupport {
  public:
    FabricLane(PluginServices& services, FabricOptions options)
        : services_(services), options_(std::move(options)) {}
    ~FabricLane() override {
        for (const auto& rail : rails_ == nullptr ? decltype(Rails::all)() : rails_->all) {
            rail->close();
        }
    }

    const char* name() const override { return "fabric"; }

    Status start(bool /*asked*/) override {
        Result<std::shared_ptr<const FabricLibrary>> library = openFabricLibrary();
        if (!library.ok()) {
            return library.status();
        }
        Result<std::vector<InfoPtr>> chosen = chooseRails(*library.value(), options_.rails);
        if (!chosen.ok()) {
            return chosen.status();
        }
        auto rails = std::make_shared<Rails>();
        rails->library = library.value();
        // Another agent of this name has another number.
        const Id id = randomId();
        const std::string self(reinterpret_cast<const char*>(id.data()), id.size());
        for (const InfoPtr& info : chosen.value()) {
            Result<std::shared_ptr<FabricRail>> rail =
                FabricRail::create(library.value(), info,
                                   self + static_cast<char>('0' + rails->all.size()), services_);
            if (!rail.ok()) {
                return rail.status();
            }
            rails->all.push_back(std::move(rail).value());
        }
        services_.log(LogLevel::INFO, "libfabric " + library.value()->version + " from " +
                                          library.value()->path + ": " + rails->devices());
        rails_ = std::move(rails);
        return {};
    }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return std::unique_ptr<BackendMemory>();
        }
        auto memory = std::make_unique<FabricMemory>(rails_);
        NIXL_RETURN_IF_ERROR(memory->map(region));
        return std::unique_ptr<BackendMemory>(std::move(memory));
    }

    RemoteSupport* remote() override { return this; }

    LaneOffer offer(const TransferPlan& plan) override {
        const std::shared_ptr<const LaneAddress> there = addressOf(plan.peer);
        if (there == nullptr) {
            return {0, "the peer gave no address of this lane"};
        }
        if (there->provider != rails_->all.front()->provider()) {
            return {0, "the peer uses provider " + there->provider + ", this agent " +
                           rails_->all.front()->provider()};
        }
        const bool reachable = std::all_of(
            plan.remoteRegions.begin(), plan.remoteRegions.end(),
            [&](const PlanRegion& region) { return keysOf(region).size() == there->rails.size(); });
        if (!reachable) {
            return {0, "the peer gave no keys of this memory"};
        }
        return {60, "libfabric reaches the peer by " + there->provider};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        const std::shared_ptr<const LaneAddress> there = addressOf(plan.peer);
        return std::unique_ptr<BackendTransfer>(std::make_unique<FabricTransfer>(
            plan, rails_, pairRails(*rails_, *there), options_.stripingThreshold, services_));
    }

    // RemoteSupport
    Result<std::string> connectionInfo() override { return encode(ownAddress()); }
    Status addPeer(const PlanPeer& peer, std::string_view connection_info) override {
        if (connection_info.empty()) {
            return {};
        }
        Result<LaneAddress> address = decodeAddress(connection_info);
        if (!address.ok()) {
            return address.status();
        }
        take(peerKey(peer), std::move(address).value());
        return {};
    }
    void removePeer(const PlanPeer& peer) override {
        const Status why = Status::disconnected("the agent has been removed");
        {
            const std::lock_guard lock(mutex_);
            peers_.erase(peerKey(peer));
        }
        for (const auto& rail : rails_->all) {
            rail->losePeer(peerKey(peer), why, true);
        }
    }
    void peerLost(const PlanPeer& peer, const Status& why) override {
        rails_->losePeer(peerKey(peer), why);
    }
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const auto* const own = dynamic_cast<const FabricMemory*>(&memory);
        return own == nullptr ? std::string() : encode(own->keys());
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& /*peer*/,
                                                        const MemoryRegion& /*region*/,
                                                        std::string_view blob) override {
        Result<std::vector<RailKey>> keys = decodeKeys(blob);
        if (!keys.ok()) {
            return keys.status();
        }
        return std::unique_ptr<BackendMemory>(
            std::make_unique<FabricRemoteMemory>(std::move(keys).value()));
    }

  private:
    LaneAddress ownAddress() const {
        LaneAddress address;
        for (const auto& rail : rails_->all) {
            address.provider = rail->provider();
            address.rails.push_back(rail->address());
        }
        return address;
    }
    void take(const std::string& key, LaneAddress address) {
        if (address.provider == rails_->all.front()->provider()) {
            const std::vector<size_t> pairs = pairRails(*rails_, address);
            for (size_t i = 0; i < rails_->all.size(); ++i) {
                rails_->all[i]->addPeer(key, address.rails[pairs[i]]);
            }
        }
        const std::lock_guard lock(mutex_);
        peers_[key] = std::make_shared<const LaneAddress>(std::move(address));
    }
    std::shared_ptr<const LaneAddress> addressOf(const PlanPeer& peer) {
        const std::string key = peerKey(peer);
        for (bool first = true;; first = false) {
            {
                const std::lock_guard lock(mutex_);
                const auto found = peers_.find(key);
                if (found != peers_.end() || !peer.self || !first) {
                    return found == peers_.end() ? nullptr : found->second;
                }
            }
            take(key, ownAddress());
        }
    }

    PluginServices& services_;
    const FabricOptions options_;
    RailsPtr rails_;
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const LaneAddress>> peers_;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<Lane> makeFabricLane(PluginServices& services, FabricOptions options) {
    return std::make_unique<FabricLane>(services, std::move(options));
}

}  // namespace nixl::fabric
