// See gpunetio_lane.h.
#include "gpunetio_lane.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "lane_ending.h"

namespace nixl::gpunetio {
namespace {

constexpr char kVersion = 1;              // of what is in the metadata
constexpr uint64_t kMostPiece = 1 << 30;  // of one request

// One registration at the adapter of its GPU.
class GpuMemory final : public BackendMemory {
  public:
    GpuMemory(std::shared_ptr<Device> device, Device::Registration registration)
        : device_(std::move(device)), registration_(registration) {}
    ~GpuMemory() override { device_->deregister(registration_.handle); }
    uint32_t localKey() const { return registration_.localKey; }
    uint32_t remoteKey() const { return registration_.remoteKey; }

  private:
    const std::shared_ptr<Device> device_;
    const Device::Registration registration_;
};

// A peer's.
class RemoteGpuMemory final : public BackendMemory {
  public:
    explicit RemoteGpuMemory(uint32_t key) : key_(key) {}
    uint32_t key() const { return key_; }

  private:
    const uint32_t key_;
};

std::optional<uint32_t> remoteKeyOf(const PlanRegion& region) {
    if (const auto* const own = dynamic_cast<const GpuMemory*>(region.memory); own != nullptr) {
        return own->remoteKey();
    }
    const auto* const remote = dynamic_cast<const RemoteGpuMemory*>(region.memory);
    return remote == nullptr ? std::nullopt : std::optional(remote->key());
}

// The plan as pieces, for each pair of GPUs.
std::vector<std::unique_ptr<Share>> sharesOf(const TransferPlan& plan) {
    std::map<std::pair<uint64_t, uint64_t>, std::unique_ptr<Share>> shares;
    SegmentCursor cursor(plan.runs);
    for (Segment segment; cursor.next(segment);) {
        const PlanRegion& local = plan.localRegions[segment.localRegion];
        const PlanRegion& remote = plan.remoteRegions[segment.remoteRegion];
        auto& share = shares[{local.deviceId, remote.deviceId}];
        if (share == nullptr) {
            share = std::make_unique<Share>();
            share->gpu = static_cast<int>(local.deviceId);
            share->peerGpu = static_cast<int>(remote.deviceId);
        }
        share->bytes += segment.size;
        Piece piece;
        piece.localKey = static_cast<const GpuMemory*>(local.memory)->localKey();
        piece.remoteKey = remoteKeyOf(remote).value_or(0);
        for (uint64_t at = 0; at < segment.size; at += kMostPiece) {
            piece.local = segment.local + at;
            piece.remote = segment.remote + at;
            piece.size = static_cast<uint32_t>(std::min(segment.size - at, kMostPiece));
            share->list.push_back(piece);
        }
    }
    std::vector<std::unique_ptr<Share>> out;
    for (auto& [key, share] : shares) {
        if (!share->list.empty()) {
            out.push_back(std::move(share));
        }
    }
    return out;
}

// Collects the ends of the shares of one post.
struct Gathering {
    std::mutex mutex;
    size_t left = 0;
    Status status;
};

class GpunetioTransfer final : public BackendTransfer {
  public:
    GpunetioTransfer(const TransferPlan& plan,
                     PluginServices& services,
                     std::shared_ptr<Engine> engine,
                     std::vector<std::unique_ptr<Share>> shares)
        : plan_(plan),
          services_(services),
          engine_(std::move(engine)),
          peer_(peerOf(plan.peer)),
          shares_(std::move(shares)) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        // Only the session tells that the peer is gone or silent.
        if (!peer_.self) {
            services_.connectPeer(plan_.peer, [engine = engine_, peer = peer_](const Status& up) {
                if (!up.ok()) {
                    engine->losePeer(peer, up);
                }
            });
        }
        auto message = has_notification ? std::optional<std::string>(notification) : std::nullopt;
        auto all = std::make_shared<Gathering>();
        all->left = std::max<size_t>(shares_.size(), 1);
        const auto done = [this, completion, all, message = std::move(message)](Status status) {
            {
                const std::lock_guard lock(all->mutex);
                if (all->status.ok() || all->status.code() == ErrorCode::CANCELED) {
                    all->status = status.ok() ? all->status : std::move(status);
                }
                if (--all->left != 0) {
                    return;
                }
            }
            moved(completion, all->status, message);
        };
        if (shares_.empty()) {
            done({});
        }
        const size_t count = shares_.size();  // this may be gone once the last one runs
        for (size_t i = 0; i < count; ++i) {
            engine_->run(peer_, plan_.op == OpType::READ, *shares_[i], *completion, done);
        }
        return {};
    }
    void cancel() override { engine_->wake(); }
    void help() override { engine_->help(); }

    TransferDescription describe() const override {
        std::string devices;
        for (const auto& share : shares_) {
            devices += (devices.empty() ? "GPU " : ", GPU ") + std::to_string(share->gpu) +
                       " to GPU " + std::to_string(share->peerGpu);
        }
        return {"gpunetio", "requests posted by a kernel on the GPU", devices};
    }

  private:
    void moved(const CompletionPtr& completion,
               Status status,
               const std::optional<std::string>& notification) {
        std::vector<SegmentFailure> failures = allOf(plan_, status);
        endPost(services_, plan_.peer, completion, std::move(status), std::move(failures),
                notification.has_value() ? &*notification : nullptr);
    }

    const TransferPlan& plan_;
    PluginServices& services_;
    const std::shared_ptr<Engine> engine_;
    const Peer peer_;
    const std::vector<std::unique_ptr<Share>> shares_;
};

class GpunetioLane final : public Lane, public RemoteSupport {
  public:
    GpunetioLane(PluginServices& services, std::shared_ptr<Engine> engine)
        : services_(services), engine_(std::move(engine)) {}
    ~GpunetioLane() override { engine_->stop(); }

    const char* name() const override { return "gpunetio"; }
    RemoteSupport* remote() override { return this; }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        const std::shared_ptr<Device> device = engine_->device(region.deviceId);
        if (device == nullptr) {
            return Status::invalidParam("GPUNETIO: memory of GPU " +
                                        std::to_string(region.deviceId) +
                                        "; gpu_devices are: " + engine_->gpuNames());
        }
        NIXL_RETURN_IF_ERROR(
            services_.devices().check(region.address, region.size, region.deviceId));
        Result<Device::Registration> made = device->registerMemory(region.address, region.size);
        if (!made.ok()) {
            return made.status();
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<GpuMemory>(device, made.value()));
    }

    LaneOffer offer(const TransferPlan& plan) override {
        const auto local = [](const PlanRegion& region) {
            return dynamic_cast<const GpuMemory*>(region.memory) != nullptr;
        };
        if (!std::all_of(plan.localRegions.begin(), plan.localRegions.end(), local)) {
            return {0, "it moves GPU memory only"};
        }
        const auto remote = [](const PlanRegion& region) {
            return remoteKeyOf(region).has_value();
        };
        if (!std::all_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), remote)) {
            return {0, "the peer gave no keys of this memory"};
        }
        return {60, "both have an adapter that GPUs can post to"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        std::vector<std::unique_ptr<Share>> shares = sharesOf(plan);
        for (const auto& share : shares) {
            NIXL_RETURN_IF_ERROR(engine_->prepare(*share));
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<GpunetioTransfer>(plan, services_, engine_, std::move(shares)));
    }

    // RemoteSupport
    Result<std::string> connectionInfo() override { return std::string(1, kVersion); }
    Status addPeer(const PlanPeer& peer, std::string_view connection_info) override {
        return connection_info.empty() || connection_info.front() == kVersion
                   ? Status()
                   : Status::notSupported("GPUNETIO: agent \"" + std::string(peer.name) +
                                          "\" speaks version " +
                                          std::to_string(connection_info.front()) + ", not " +
                                          std::to_string(kVersion));
    }
    void removePeer(const PlanPeer& peer) override {
        engine_->losePeer(peerOf(peer), Status::disconnected("the agent has been removed"));
    }
    void peerLost(const PlanPeer& peer, const Status& why) override {
        engine_->losePeer(peerOf(peer), why);
    }
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const auto* const own = dynamic_cast<const GpuMemory*>(&memory);
        if (own == nullptr) {
            return std::string();
        }
        const uint32_t key = own->remoteKey();
        return std::string(reinterpret_cast<const char*>(&key), sizeof(key));  // big-endian
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& peer,
                                                        const MemoryRegion& /*region*/,
                                                        std::string_view blob) override {
        uint32_t key = 0;
        if (blob.size() != sizeof(key)) {
            return Status::invalidParam("GPUNETIO: agent \"" + std::string(peer.name) +
                                        "\" gave a key of " + std::to_string(blob.size()) +
                                        " bytes");
        }
        std::memcpy(&key, blob.data(), sizeof(key));
        return std::unique_ptr<BackendMemory>(std::make_unique<RemoteGpuMemory>(key));
    }

  private:
    PluginServices& services_;
    const std::shared_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<Lane> makeGpunetioLane(PluginServices& services, std::shared_ptr<Engine> engine) {
    return std::make_unique<GpunetioLane>(services, std::move(engine));
}

}  // namespace nixl::gpunetio
