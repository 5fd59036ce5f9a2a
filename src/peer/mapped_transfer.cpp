// Lane `host` with memory of GPUs; see device_transfer.h.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "device/devices.h"
#include "device/plan_copy.h"
#include "lanes/host/plan_maps.h"
#include "peer/device_transfer.h"

namespace nixl::peer {

namespace {

// What one post keeps until its end.
struct MappedPost {
    std::shared_ptr<Link> link;
    CompletionPtr completion;
    std::string notification;
    bool notify = false;
    std::vector<MappedRegionPtr> mapped;  // nothing is unmapped beneath the copies
    std::shared_ptr<void> hold;           // nor deregistered

    void end(const Status& status, std::vector<SegmentFailure> failures) {
        hold.reset();
        mapped.clear();
        if (status.code() == ErrorCode::CANCELED) {
            completion->cancel();
        } else if (!status.ok()) {
            completion->fail(
                Status(status.code(), "agent \"" + link->peer().name + "\": " + status.message()),
                std::move(failures));
        } else if (!notify) {
            completion->succeed();
        } else {
            const Status sent =
                link->send(std::move(notification), [done = completion](const Status& outcome) {
                    outcome.ok() ? done->succeed() : done->fail(outcome);
                });
            if (!sent.ok()) {
                completion->fail(sent);
            }
        }
    }
};

class MappedTransfer final : public BackendTransfer {
  public:
    MappedTransfer(std::shared_ptr<EngineImpl> engine,
                   std::shared_ptr<Link> link,
                   const TransferPlan& plan,
                   std::unique_ptr<BackendTransfer> fallback)
        : state_(std::make_shared<State>(
              std::move(engine), std::move(link), plan, std::move(fallback))) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        if (notification.size() > kMaxNotification) {
            return Status::invalidParam("notification of " + std::to_string(notification.size()) +
                                        " bytes: at most " + std::to_string(kMaxNotification) +
                                        " are legal");
        }
        auto post = std::make_shared<MappedPost>();
        post->link = state_->link;
        post->completion = std::move(completion);
        post->notification = notification;
        post->notify = has_notification;
        {
            const MutexLock lock(state_->mutex);
            state_->current = post;
            state_->copy = nullptr;
            state_->fellBack = state_->starting = false;
        }
        if (state_->link->ready()) {
            state_->whenReady(post, {});
        } else {
            state_->link->whenReady(
                [state = state_, post](const Status& status) { state->whenReady(post, status); });
        }
        return {};
    }

    void cancel() override {
        std::shared_ptr<device::PlanCopy> copy;
        std::shared_ptr<MappedPost> waiting;
        bool fell_back = false;
        {
            const MutexLock lock(state_->mutex);
            copy = state_->copy;
            fell_back = state_->fellBack;
            if (copy == nullptr && !fell_back && !state_->starting) {
                waiting = std::exchange(state_->current, nullptr);
            }
        }
        if (copy != nullptr) {
            copy->stop();
        } else if (fell_back) {
            state_->fallback->cancel();
        } else if (waiting != nullptr) {
            waiting->completion->cancel();
        }
    }

    void help() override {
        std::shared_ptr<device::PlanCopy> copy;
        bool fell_back = false;
        {
            const MutexLock lock(state_->mutex);
            copy = state_->copy;
            fell_back = state_->fellBack;
        }
        if (fell_back) {
            return state_->fallback->help();
        }
        if (copy != nullptr) {
            copy->poll();
        }
        state_->engine->pollSet.progress();
    }

    TransferDescription describe() const override {
        std::string why;
        if (!state_->link->ready() || state_->maps.count().pending) {
            return {"host", "not decided yet: the peer has not been asked for its memory",
                    "GPU memory"};
        }
        std::vector<MappedRegionPtr> mapped;
        std::vector<device::RemotePlace> places;
        if (state_->link->host().peer() != nullptr && state_->placeAll(mapped, places, why)) {
            return {"host", "the peer's memory is mapped; copied by the CUDA driver", "GPU memory"};
        }
        if (state_->link->host().peer() == nullptr) {
            why = state_->link->host().choice().reason;
        }
        if (state_->fallback == nullptr) {
            return {"host", why, "GPU memory"};
        }
        TransferDescription description = state_->fallback->describe();
        description.reason += "; not host: " + why;
        return description;
    }

  private:
    // Outlives the transfer where a callback is under way.
    struct State : std::enable_shared_from_this<State> {
        State(std::shared_ptr<EngineImpl> its_engine,
              std::shared_ptr<Link> its_link,
              const TransferPlan& its_plan,
              std::unique_ptr<BackendTransfer> its_fallback)
            : engine(std::move(its_engine)),
              link(std::move(its_link)),
              plan(its_plan),
              fallback(std::move(its_fallback)),
              maps(link->host().mapRegions(its_plan)) {}

        void whenReady(const std::shared_ptr<MappedPost>& post, const Status& status) {
            if (!status.ok()) {
                return refuse(post, status);
            }
            if (maps.count().pending) {
                return link->host().whenMapped(
                    [self = shared_from_this(), post](const Status& outcome) {
                        outcome.ok() ? self->begin(post) : self->refuse(post, outcome);
                    });
            }
            begin(post);
        }

        void refuse(const std::shared_ptr<MappedPost>& post, const Status& status) {
            {
                const MutexLock lock(mutex);
                if (current != post) {
                    return;  // canceled
                }
                current = nullptr;
            }
            post->completion->fail(status);
        }

        void begin(const std::shared_ptr<MappedPost>& post) {
            {
                // From here on the plan is used: a cancel waits for the copies to see it.
                const MutexLock lock(mutex);
                if (current != post) {
                    return;
                }
                starting = true;
            }
            std::string why;
            std::vector<device::RemotePlace> places;
            std::shared_ptr<HostPeer> host = link->host().peer();
            if (host == nullptr) {
                why = link->host().choice().reason;
            } else if (placeAll(post->mapped, places, why)) {
                return copyBy(post, std::move(host), std::move(places));
            }
            post->mapped.clear();
            if (fallback == nullptr) {
                return refuse(
                    post, Status::notSupported("lane host: " + why + "; no other lane is allowed"));
            }
            {
                const MutexLock lock(mutex);
                if (current != post) {
                    return;
                }
                fellBack = true;
            }
            const Status status =
                fallback->post(post->completion, post->notification, post->notify);
            if (!status.ok()) {
                post->completion->fail(status);
            } else if (post->completion->cancelRequested() && !post->completion->final()) {
                fallback->cancel();
            }
        }

        void copyBy(const std::shared_ptr<MappedPost>& post,
                    std::shared_ptr<HostPeer> host,
                    std::vector<device::RemotePlace> places) {
            std::vector<std::pair<uint64_t, uint32_t>> regions;
            for (const PlanRegion& region : plan.remoteRegions) {
                regions.emplace_back(region.id, region.generation);
            }
            Result<std::shared_ptr<void>> hold = HostPeer::hold(std::move(host), regions);
            if (!hold.ok()) {
                return refuse(post, {hold.status().code(), "agent \"" + link->peer().name +
                                                               "\": " + hold.status().message()});
            }
            post->hold = std::move(hold).value();
            const auto job = device::PlanCopy::create(
                device::devices(), engine->pool, plan, std::move(places),
                [post](const Status& status, std::vector<SegmentFailure> failures) {
                    post->end(status, std::move(failures));
                });
            const bool small = device::PlanCopy::isSmall(plan);
            {
                const MutexLock lock(mutex);
                if (current != post) {
                    post->hold.reset();
                    return;
                }
                copy = job;
            }
            if (post->completion->cancelRequested()) {
                job->stop();
            }
            job->start(small);
        }

        // Where the remote regions lie here; false with the reason where one of them does not.
        bool placeAll(std::vector<MappedRegionPtr>& mapped,
                      std::vector<device::RemotePlace>& places,
                      std::string& why) const {
            for (size_t i = 0; i < plan.remoteRegions.size(); ++i) {
                const RegionMapPtr& map = i < maps.all().size() ? maps.all()[i] : nullptr;
                MappedRegionPtr here = map != nullptr ? map->mapped() : nullptr;
                if (here == nullptr && map == nullptr) {
                    places.push_back({});  // the plan does not touch it
                    continue;
                }
                if (here != nullptr && here->gpu != nullptr) {
                    places.push_back({here->gpu->address() - here->gpuBase, here->gpu->device()});
                } else if (here != nullptr && here->whole && here->pieces.size() == 1) {
                    const MappedRegion::Piece& piece = here->pieces.front();
                    places.push_back({reinterpret_cast<uint64_t>(piece.at) - piece.begin, -1});
                } else {
                    why = map->reason();
                    return false;
                }
                mapped.push_back(std::move(here));
            }
            return true;
        }

        const std::shared_ptr<EngineImpl> engine;
        const std::shared_ptr<Link> link;
        const TransferPlan& plan;
        const std::unique_ptr<BackendTransfer> fallback;
        const PlanMaps maps;
        Mutex mutex;
        std::shared_ptr<MappedPost> current NIXL_GUARDED_BY(mutex);
        std::shared_ptr<device::PlanCopy> copy NIXL_GUARDED_BY(mutex);
        bool starting NIXL_GUARDED_BY(mutex) = false;
        bool fellBack NIXL_GUARDED_BY(mutex) = false;
    };

    const std::shared_ptr<State> state_;
};

}  // namespace

std::unique_ptr<BackendTransfer> makeMappedTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    std::unique_ptr<BackendTransfer> fallback) {
    return std::make_unique<MappedTransfer>(std::move(engine), std::move(link), plan,
                                            std::move(fallback));
}

}  // namespace nixl::peer
