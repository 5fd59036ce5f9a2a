// See device_transfer.h.
#include "lanes/local/device_transfer.h"

#include <string>
#include <utility>

#include "base/mutex.h"
#include "device/plan_copy.h"
#include "lanes/local/local_post.h"

namespace nixl::peer {
namespace {

// What a copy costs in microseconds, for estimates: a start, a segment, and bytes in each (PCIe 4).
constexpr double kGpuPost = 15;
constexpr double kGpuSegment = 2;
constexpr double kGpuRate = 20'000;

class DeviceTransfer final : public BackendTransfer {
  public:
    DeviceTransfer(const Identity& self,
                   const TransferPlan& plan,
                   std::weak_ptr<TargetAccess> target,
                   PluginServices& services)
        : self_(self), plan_(plan), target_(std::move(target)), services_(services) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        auto operation = std::make_shared<LocalPost>();
        NIXL_RETURN_IF_ERROR(operation->begin(self_, plan_, target_, std::move(completion),
                                              notification, has_notification));
        const bool small = device::PlanCopy::isSmall(plan_);
        const auto copy = device::PlanCopy::create(
            services_.devices(), services_.copyPool(), plan_, device::placesOf(plan_.remoteRegions),
            [operation](Status status, std::vector<SegmentFailure> failures) {
                operation->end(std::move(status), std::move(failures));
            });
        {
            const MutexLock lock(mutex_);
            copy_ = copy;
        }
        if (operation->completion->cancelRequested()) {
            copy->stop();
        }
        copy->start(small);
        return {};
    }

    void cancel() override {
        if (const auto copy = current(); copy != nullptr) {
            copy->stop();
        }
    }

    void help() override {
        if (const auto copy = current(); copy != nullptr) {
            copy->poll();
        }
    }

    TransferDescription describe() const override {
        return {"local", "both agents live in this process; copied by the CUDA driver",
                "GPU memory"};
    }

    std::optional<TransferCost> estimateCost() const override {
        const double cost = kGpuPost + kGpuSegment * static_cast<double>(plan_.segments) +
                            static_cast<double>(plan_.bytes) / kGpuRate;
        TransferCost estimate;
        estimate.duration = std::chrono::microseconds(static_cast<int64_t>(cost));
        estimate.margin = estimate.duration;
        estimate.method = "copies of the CUDA driver at 20 GB/s and 2 us a segment";
        return estimate;
    }

  private:
    std::shared_ptr<device::PlanCopy> current() {
        const MutexLock lock(mutex_);
        return copy_;
    }

    const Identity& self_;
    const TransferPlan& plan_;
    std::weak_ptr<TargetAccess> target_;
    PluginServices& services_;
    Mutex mutex_;
    std::shared_ptr<device::PlanCopy> copy_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<BackendTransfer> makeDeviceTransfer(const Identity& self,
                                                    const TransferPlan& plan,
                                                    std::weak_ptr<TargetAccess> target,
                                                    PluginServices& services) {
    return std::make_unique<DeviceTransfer>(self, plan, std::move(target), services);
}

}  // namespace nixl::peer
