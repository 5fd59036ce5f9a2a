// A completion a test can wait for. Shared with the backend; thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "nixl/backend.h"

namespace nixl::testkit {

class TestCompletion final : public Completion {
  public:
    // False when it is not final within `timeout`.
    bool waitFor(std::chrono::milliseconds timeout) {
        std::unique_lock<std::mutex> lock(mutex_);
        return changed_.wait_for(lock, timeout, [this] { return final(); });
    }
    // REQUIRES: final()
    const Status& status() const { return status_; }
    const std::vector<SegmentFailure>& failures() const { return failures_; }
    // How often it ended: never more than once.
    int ends() const { return ends_.load(); }

  private:
    void onFinal(XferState /*state*/,
                 Status&& status,
                 std::vector<SegmentFailure>&& failed) override {
        status_ = std::move(status);
        failures_ = std::move(failed);
        ends_.fetch_add(1);
    }
    void afterFinal() override {
        const std::lock_guard<std::mutex> lock(mutex_);
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    Status status_;
    std::vector<SegmentFailure> failures_;
    std::atomic<int> ends_{0};
};

}  // namespace nixl::testkit
