// One prepared transfer of the HF3FS backend. Owned by the core.
//
// Threads: as BackendTransfer.
#pragma once

#include "posix/job.h"
#include "ring_engine.h"

namespace nixl::hf3fs {

class Hf3fsTransfer final : public BackendTransfer {
  public:
    Hf3fsTransfer(const TransferPlan& plan,
                  posix::BuildLimits limits,
                  posix::Shared& shared,
                  RingEngine& engine);

    // What no post could do, told at preparation.
    static Status check(const TransferPlan& plan);

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override;
    void cancel() override { job_.cancel(); }
    void help() override { job_.help(); }
    TransferDescription describe() const override;

  private:
    posix::Job job_;
    RingEngine& engine_;
    bool small_ = false;  // post submits it itself
    bool copied_ = false;
};

}  // namespace nixl::hf3fs
