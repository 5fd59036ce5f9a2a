// What the wrappers share: a backend that passes every call on, and a completion that stands
// between the inner backend and the core. Thread rule: as nixl/backend.h.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "base/mutex.h"

namespace nixl::backend {

// Registered memory passes through unwrapped, so plans need no translation.
class WrappedBackend : public Backend {
  public:
    explicit WrappedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

    const BackendInfo& info() const override { return inner_->info(); }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        return inner_->registerMemory(region);
    }
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        return inner_->prepareTransfer(plan);
    }
    void progress() override { inner_->progress(); }
    bool needsProgress() const override { return inner_->needsProgress(); }
    RemoteSupport* remote() override { return inner_->remote(); }
    NotificationSupport* notifications() override { return inner_->notifications(); }
    QuerySupport* query() override { return inner_->query(); }
    bool usesLanes() const override { return inner_->usesLanes(); }

  protected:
    Backend& inner() { return *inner_; }
    const Backend& inner() const { return *inner_; }

  private:
    std::unique_ptr<Backend> inner_;
};

// Ends when the inner backend says so, keeps how, and then calls ended() once.
class InnerCompletion : public Completion {
  public:
    explicit InnerCompletion(CompletionPtr outer) : outer_(std::move(outer)) {
        if (outer_->cancelRequested()) {
            requestCancel();
        }
    }
    Completion& outer() { return *outer_; }
    const CompletionPtr& outerPointer() const { return outer_; }
    // How the inner backend ended it. REQUIRES: final(), or inside ended()
    XferState endState() const { return state_; }
    const Status& status() const { return status_; }
    const std::vector<SegmentFailure>& failures() const { return failures_; }
    void tellUser(const Status& why, const std::vector<SegmentFailure>& failures) override {
        outer_->tellUser(why, failures);
    }
    // Ends the outer completion as this one ended.
    bool passOn() {
        return state_ == XferState::DONE ? outer_->succeed() : outer_->fail(status_, failures_);
    }

  protected:
    virtual void ended() = 0;

  private:
    void onFinal(XferState state,
                 Status&& status,
                 std::vector<SegmentFailure>&& failures) override {
        state_ = state;
        status_ = std::move(status);
        failures_ = std::move(failures);
    }
    void afterFinal() override { ended(); }

    const CompletionPtr outer_;
    XferState state_ = XferState::PENDING;
    Status status_;
    std::vector<SegmentFailure> failures_;
};

// The current post of a wrapped transfer, which cancel() may ask for while post() sets it.
template <typename Completion>
class CurrentPost {
  public:
    struct Post {
        std::shared_ptr<Completion> completion;
        std::shared_ptr<BackendTransfer> transfer;
    };
    void set(Post post) NIXL_EXCLUDES(mutex_) {
        const MutexLock lock(mutex_);
        std::swap(post_, post);  // what it was is destroyed after the lock
    }
    Post get() NIXL_EXCLUDES(mutex_) {
        const MutexLock lock(mutex_);
        return post_;
    }

  private:
    Mutex mutex_;
    Post post_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::backend
