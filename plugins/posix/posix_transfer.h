// One prepared transfer of the POSIX backend. Owned by the core.
//
// Threads: as BackendTransfer.
#pragma once

#include <vector>

#include "job.h"

namespace nixl::posix {

class PosixTransfer final : public BackendTransfer {
  public:
    PosixTransfer(const TransferPlan& plan,
                  BuildLimits queue_limits,
                  BuildLimits pool_limits,
                  uint64_t inline_bytes,
                  Shared& shared);

    // What no post could do, told at preparation.
    static Status check(const TransferPlan& plan);

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override;
    void cancel() override { job_.cancel(); }
    void help() override { job_.help(); }
    TransferDescription describe() const override;

  private:
    bool tryInline();
    bool moveNow(const Segment& segment);

    const TransferPlan& plan_;
    Job job_;
    bool small_ = false;              // worth trying inside post
    std::vector<const File*> paths_;  // of a small one, the files registered by path
};

}  // namespace nixl::posix
