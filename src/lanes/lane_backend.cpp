// See lane_backend.h.
#include "lanes/lane_backend.h"

#include <algorithm>
#include <sstream>
#include <utility>
#include <vector>

namespace nixl::peer {
namespace {

// A lane that was not taken, and why.
struct Passed {
    const char* lane;
    LaneReason reason;
};

std::string textOf(const std::vector<Passed>& passed) {
    std::string text;
    for (const Passed& one : passed) {
        text += text.empty() ? "not " : "; not ";
        text += one.lane;
        text += ": ";
        text += one.reason.text();
    }
    return text;
}

// Adds to a lane's own account why the others were not taken.
class ChosenTransfer final : public BackendTransfer {
  public:
    ChosenTransfer(std::unique_ptr<BackendTransfer> inner,
                   const char* lane,
                   std::vector<Passed> passed)
        : inner_(std::move(inner)), lane_(lane), passed_(std::move(passed)) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        return inner_->post(std::move(completion), notification, has_notification);
    }
    void cancel() override { inner_->cancel(); }
    void help() override { inner_->help(); }
    TransferDescription describe() const override {
        TransferDescription description = inner_->describe();
        if (!passed_.empty()) {
            description.reason += "; " + textOf(passed_);
        }
        return description;
    }
    std::string_view lane() const override { return lane_; }
    std::optional<uint64_t> bytesDone() const override { return inner_->bytesDone(); }
    std::optional<TransferCost> estimateCost() const override { return inner_->estimateCost(); }

  private:
    std::unique_ptr<BackendTransfer> inner_;
    const char* const lane_;
    const std::vector<Passed> passed_;
};

class LaneBackend final : public Backend {
  public:
    LaneBackend(BackendInfo info, std::vector<std::unique_ptr<Lane>> lanes)
        : info_(std::move(info)), lanes_(std::move(lanes)) {}

    const BackendInfo& info() const override { return info_; }
    bool usesLanes() const override { return true; }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        for (const auto& lane : lanes_) {
            Result<std::unique_ptr<BackendMemory>> memory = lane->registerMemory(region);
            if (!memory.ok() || memory.value() != nullptr) {
                return memory;
            }
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<BackendMemory>());
    }

    // Of the first lane that keeps keys: at most one of a backend's lanes is a library's.
    RemoteSupport* remote() override {
        for (const auto& lane : lanes_) {
            if (RemoteSupport* const support = lane->remote(); support != nullptr) {
                return support;
            }
        }
        return nullptr;
    }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        Lane* best = nullptr;
        LaneOffer best_offer;
        std::vector<Passed> passed;
        passed.reserve(lanes_.size());
        for (const auto& lane : lanes_) {
            LaneOffer offer = lane->offer(plan);
            if (offer.score > best_offer.score) {
                std::swap(best_offer, offer);
                Lane* const loser = std::exchange(best, lane.get());
                if (loser != nullptr) {
                    passed.push_back({loser->name(), std::move(offer.reason)});
                }
            } else {
                passed.push_back({lane->name(), std::move(offer.reason)});
            }
        }
        if (best == nullptr) {
            return Status::notSupported(info_.name + ": no lane reaches agent \"" +
                                        std::string(plan.peer.name) + "\" (" + textOf(passed) +
                                        ")");
        }
        Result<std::unique_ptr<BackendTransfer>> transfer = best->prepare(plan);
        if (!transfer.ok()) {
            return transfer.status();
        }
        return std::unique_ptr<BackendTransfer>(std::make_unique<ChosenTransfer>(
            std::move(transfer).value(), best->name(), std::move(passed)));
    }

  private:
    const BackendInfo info_;
    const std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace

Result<std::unique_ptr<Backend>> makeLaneBackend(LaneBackendSpec spec,
                                                 std::vector<std::unique_ptr<Lane>> project_lanes) {
    std::vector<std::unique_ptr<Lane>> all = std::move(project_lanes);
    std::move(spec.lanes.begin(), spec.lanes.end(), std::back_inserter(all));
    std::string names;
    for (const auto& lane : all) {
        names += std::string(names.empty() ? "" : " ") + lane->name();
    }
    if (!spec.wantedLanes.empty()) {
        std::vector<std::unique_ptr<Lane>> wanted;
        std::stringstream words(spec.wantedLanes);
        for (std::string word; std::getline(words, word, ',');) {
            const auto found =
                std::find_if(all.begin(), all.end(), [&](const std::unique_ptr<Lane>& lane) {
                    return lane != nullptr && word == lane->name();
                });
            if (found == all.end()) {
                return Status::invalidParam(spec.info.name + ": lanes=\"" + spec.wantedLanes +
                                            "\" names \"" + word + "\"; this backend has " + names);
            }
            wanted.push_back(std::move(*found));
        }
        all = std::move(wanted);
    }
    for (const auto& lane : all) {
        NIXL_RETURN_IF_ERROR(lane->start(!spec.wantedLanes.empty()));
    }
    return std::unique_ptr<Backend>(
        std::make_unique<LaneBackend>(std::move(spec.info), std::move(all)));
}

}  // namespace nixl::peer
