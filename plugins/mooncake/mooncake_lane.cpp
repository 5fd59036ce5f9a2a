// See mooncake_lane.h.
#include "mooncake_lane.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "lane_ending.h"
#include "mooncake_machine.h"
#include "mooncake_memory.h"
#include "mooncake_worker.h"

namespace nixl::mooncake {
namespace {

Cuts cutsOfAll(std::span<const PlanRegion> regions) {
    Cuts cuts;
    for (const PlanRegion& region : regions) {
        const std::vector<uint64_t>* const own = cutsOf(region.memory);
        cuts.push_back(own == nullptr ? std::vector<uint64_t>() : *own);
    }
    return cuts;
}

constexpr uint64_t kLarge = 256 << 10;

class MooncakeTransfer final : public BackendTransfer {
  public:
    MooncakeTransfer(const TransferPlan& plan,
                     std::shared_ptr<MooncakePeer> peer,
                     PluginServices& services,
                     TransferDescription description)
        : plan_(plan),
          peer_(std::move(peer)),
          services_(services),
          description_(std::move(description)),
          local_(cutsOfAll(plan.localRegions)),
          remote_(cutsOfAll(plan.remoteRegions)) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        MooncakeJob job;
        job.read = plan_.op == OpType::READ;
        job.bytes = plan_.bytes;
        job.runs = plan_.runs;
        job.localCuts = &local_;
        job.remoteCuts = &remote_;
        job.completion = completion;
        job.done = [this, completion, message = std::string(notification), has_notification](
                       Status status, std::vector<SegmentFailure> failures) {
            moved(completion, std::move(status), std::move(failures),
                  has_notification ? &message : nullptr);
        };
        const auto active = peer_->add(std::move(job));
        // Only the session tells that the peer is silent, or another one by now.
        services_.connectPeer(
            plan_.peer, [peer = peer_, active](const Status& up) { peer->begin(active, up); });
        return {};
    }
    void cancel() override { peer_->advance(); }
    void help() override {
        const auto begin = std::chrono::steady_clock::now();
        const bool moved = peer_->advance();
        if (const auto pollers = services_.pollers(); pollers != nullptr) {
            moved ? pollers->progressed(begin) : pollers->progress();
        }
        if (!moved && plan_.bytes > kLarge) {
            std::this_thread::yield();  // to the engine's threads, which do the work
        }
    }
    TransferDescription describe() const override { return description_; }

  private:
    void moved(const CompletionPtr& completion,
               Status status,
               std::vector<SegmentFailure> failures,
               const std::string* notification) const {
        if (status.code() == ErrorCode::CANCELED) {
            completion->cancel(status.message());
        } else {
            endPost(services_, plan_.peer, completion, std::move(status), std::move(failures),
                    notification);
        }
    }

    const TransferPlan& plan_;
    const std::shared_ptr<MooncakePeer> peer_;
    PluginServices& services_;
    const TransferDescription description_;
    const Cuts local_;
    const Cuts remote_;
};

class MooncakeLane final : public Lane, public RemoteSupport {
  public:
    MooncakeLane(PluginServices& services, MooncakeOptions options)
        : services_(services), options_(std::move(options)) {}
    ~MooncakeLane() override {
        if (worker_ != nullptr) {
            worker_->stop();
        }
    }

    const char* name() const override { return "mooncake"; }

    Status start(bool /*asked*/) override {
        Result<const MooncakeLibrary*> library = openMooncake();
        if (!library.ok()) {
            return library.status();
        }
        library_ = library.value();
        NIXL_RETURN_IF_ERROR(chooseTransport());
        Result<std::shared_ptr<Engine>> engine = Engine::create(*library_, engine_);
        if (!engine.ok()) {
            return engine.status();
        }
        serving_ = std::move(engine).value();
        NIXL_RETURN_IF_ERROR(serving_->tryItself());
        cover_ = std::make_shared<Cover>(Cover::Calls{
            [engine = serving_](const Cover::Range& range) {
                return engine->registerMemory(range.first, range.second - range.first, "*");
            },
            [engine = serving_](const Cover::Range& range) {
                engine->unregisterMemory(range.first);
            },
            [this](const Status& status) {
                services_.log(LogLevel::WARN,
                              "peers reach some memory no more: " + status.message());
            }});
        NIXL_RETURN_IF_ERROR(startWorker());
        services_.log(LogLevel::INFO, "Mooncake's engine from " + library_->path + ", protocol " +
                                          engine_.protocol + ", segment " + serving_->name());
        return {};
    }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (region.type == MemType::VRAM && !takesGpus()) {
            return std::unique_ptr<BackendMemory>();  // the other lanes move it
        }
        const Cover::Range range{region.address, region.address + region.size};
        std::vector<uint64_t> cuts;
        if (region.size != 0) {
            Result<std::vector<uint64_t>> added = cover_->add(range);
            if (!added.ok()) {
                return added.status();
            }
            cuts = std::move(added).value();
        }
        return std::unique_ptr<BackendMemory>(
            std::make_unique<MooncakeMemory>(cover_, range, std::move(cuts)));
    }

    RemoteSupport* remote() override { return this; }

    LaneOffer offer(const TransferPlan& plan) override {
        const auto lacks = [](const PlanRegion& region) {
            return cutsOf(region.memory) == nullptr;
        };
        if (std::any_of(plan.localRegions.begin(), plan.localRegions.end(), lacks)) {
            return {0, "this Mooncake library was built without GPUs"};
        }
        if (!plan.peer.self && worker_->find(peerKey(plan.peer)) == nullptr) {
            return {0, whyNot(plan.peer)};
        }
        if (std::any_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), lacks)) {
            return {0, "the peer's Mooncake has not registered this memory"};
        }
        return {60, "Mooncake's engine reaches the peer"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        const std::string key = peerKey(plan.peer);
        const auto peer = plan.peer.self
                              ? worker_->peer(key, std::string(plan.peer.name), serving_->name())
                              : worker_->find(key);
        if (peer == nullptr) {
            return Status::notFound("agent \"" + std::string(plan.peer.name) +
                                    "\" has been removed");
        }
        return std::unique_ptr<BackendTransfer>(std::make_unique<MooncakeTransfer>(
            plan, peer, services_,
            TransferDescription{
                "mooncake",
                "Mooncake's transfer engine by " + engine_.protocol + " to " + peer->segment(),
                library_->path}));
    }

    // RemoteSupport
    Result<std::string> connectionInfo() override {
        return EngineAddress{engine_.protocol, serving_->name()}.text();
    }
    Status addPeer(const PlanPeer& peer, std::string_view connection_info) override {
        const std::string key = peerKey(peer);
        if (connection_info.empty()) {
            return {};
        }
        const Result<EngineAddress> address = EngineAddress::parse(connection_info);
        if (!address.ok()) {
            return address.status();
        }
        if (address.value().protocol != engine_.protocol) {
            const std::lock_guard lock(mutex_);
            otherProtocol_[key] = address.value().protocol;
            return {};
        }
        static_cast<void>(worker_->peer(key, std::string(peer.name), address.value().segment));
        return {};
    }
    void removePeer(const PlanPeer& peer) override {
        const std::string key = peerKey(peer);
        if (const auto known = worker_->find(key); known != nullptr) {
            known->lose(
                Status::disconnected("agent \"" + std::string(peer.name) + "\" has been removed"));
        }
        worker_->forget(key);
        const std::lock_guard lock(mutex_);
        otherProtocol_.erase(key);
    }
    void peerLost(const PlanPeer& peer, const Status& why) override {
        if (const auto known = worker_->find(peerKey(peer)); known != nullptr) {
            // The agent ends: nobody is left to wait for the engine.
            why.code() == ErrorCode::CANCELED ? known->leave(why) : known->lose(why);
        }
    }
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const auto* const own = dynamic_cast<const MooncakeMemory*>(&memory);
        return own == nullptr ? std::string() : own->key();
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& /*peer*/,
                                                        const MemoryRegion& region,
                                                        std::string_view blob) override {
        return MooncakeRemoteMemory::parse(region, blob);
    }

  private:
    Status chooseTransport() {
        const std::vector<std::string> devices = rdmaDevices();
        engine_.protocol = options_.protocol;
        if (options_.protocol == "auto") {
            engine_.protocol = devices.empty() ? "tcp" : "rdma";
        }
        std::string names;
        for (const std::string& device : devices) {
            names += (names.empty() ? "" : ", ") + device;
        }
        if (engine_.protocol == "rdma" && devices.empty()) {
            return Status::notFound(
                "protocol=\"rdma\": this machine has no RDMA device; "
                "protocol tcp works without one");
        }
        for (const std::string& device : options_.devices) {
            if (engine_.protocol == "rdma" &&
                std::find(devices.begin(), devices.end(), device) == devices.end()) {
                return Status::notFound("device_name=\"" + device + "\": this machine has " +
                                        names);
            }
        }
        const char* const framing = std::getenv("MC_TCP_PROTO");
        if (engine_.protocol == "tcp" && framing != nullptr && std::string_view(framing) == "1") {
            return Status::notAllowed(
                "MC_TCP_PROTO=1 in the environment has Mooncake tell of a WRITE's end "
                "before the bytes are there; unset it");
        }
        engine_.host = options_.host.empty() ? ownAddress() : options_.host;
        engine_.devices = options_.devices;
        return {};
    }

    // By tcp an engine of its own begins transfers, which may be replaced or ended without taking
    // the segment from peers. By rdma that would register all memory twice.
    Status startWorker() {
        const bool own = engine_.protocol == "tcp";
        auto asking = std::make_shared<Asking>(
            [own, library = library_, options = engine_,
             serving = serving_]() -> Result<std::shared_ptr<Engine>> {
                return own ? Engine::create(*library, options) : serving;
            },
            own);
        worker_ = std::make_shared<MooncakeWorker>(std::move(asking));
        return worker_->start();
    }

    bool takesGpus() const { return library_->gpus || engine_.protocol == "rdma"; }

    std::string whyNot(const PlanPeer& peer) {
        const std::lock_guard lock(mutex_);
        const auto other = otherProtocol_.find(peerKey(peer));
        return other == otherProtocol_.end() ? "the peer has no backend MOONCAKE"
                                             : "the peer's Mooncake uses " + other->second +
                                                   ", this agent's " + engine_.protocol;
    }

    PluginServices& services_;
    const MooncakeOptions options_;
    const MooncakeLibrary* library_ = nullptr;
    EngineOptions engine_;
    std::shared_ptr<Engine> serving_;
    std::shared_ptr<Cover> cover_;
    std::shared_ptr<MooncakeWorker> worker_;
    std::mutex mutex_;
    std::map<std::string, std::string> otherProtocol_;  // by peer; guarded by mutex_
};

}  // namespace

std::unique_ptr<Lane> makeMooncakeLane(PluginServices& services, MooncakeOptions options) {
    return std::make_unique<MooncakeLane>(services, std::move(options));
}

}  // namespace nixl::mooncake
