// One prepared transfer of the GUSLI backend. Owned by the core.
//
// Threads: as BackendTransfer.
#pragma once

#include <string>

#include "block_file.h"
#include "posix/machinery.h"

namespace nixl::gusli {

class GusliTransfer final : public BackendTransfer {
  public:
    GusliTransfer(const TransferPlan& plan, posix::BuildLimits limits, posix::Shared& shared)
        : job_(plan, limits, limits, shared),
          throughClient_(deviceOf(*plan.remoteRegions.front().memory).throughClient()) {}

    // What no post could do, told at preparation: offsets and lengths that are no whole blocks,
    // and bytes beyond the end of a device.
    static Status check(const TransferPlan& plan);

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override;
    void cancel() override { job_.cancel(); }
    void help() override { job_.help(); }
    TransferDescription describe() const override;

  private:
    posix::Job job_;
    const bool throughClient_;
};

}  // namespace nixl::gusli
