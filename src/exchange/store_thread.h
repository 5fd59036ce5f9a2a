// One thread that does what a store is asked for, in order, and calls back. Owned by the store.
// run() is thread-safe; end() is called once, by the store's destructor.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "nixl/error.h"

namespace nixl::exchange {

class StoreThread {
  public:
    // `name`: of the thread. `idle`: called now and then while there is nothing to do; may be null.
    explicit StoreThread(std::string name,
                         std::function<void()> idle = nullptr,
                         std::chrono::milliseconds pause = std::chrono::milliseconds(0));
    ~StoreThread();
    StoreThread(const StoreThread&) = delete;
    StoreThread& operator=(const StoreThread&) = delete;

    // `work` runs on the thread. Where the store ends before, or in the middle of it, `ended` is
    // called in its place: `work` must use `finish` for whatever it tells, which says whether it
    // may still do so.
    using Finish = std::function<bool()>;
    void run(std::function<void(const Finish& finish)> work,
             const std::function<void(Status)>& ended);
    // Nothing is called after it, and what `idle` and the works hold is let go of. Waits for what
    // was asked for, at most kEndPatience; what takes longer is left behind and tells nobody.
    void end();

    static constexpr std::chrono::milliseconds kEndPatience{200};

  private:
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace nixl::exchange
