// Fetches of other agents' metadata: which are under way, and why the last one of an agent failed.
// This is what check_remote_metadata and the forms that wait tell, whichever way a fetch goes.
// Thread-safe; nothing is called with the lock held.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "nixl/error.h"

namespace nixl::exchange {

class Fetches {
  public:
    using Done = std::function<void(const Status&)>;

    Fetches();

    // A fetch of `peer` begins, and what an earlier one failed with is forgotten. Whoever does the
    // work calls what is returned when it has ended: from any thread, also after this object has
    // gone; later calls do nothing. `done` is called once: then, or by endAll().
    Done begin(const std::string& peer, Done done);
    // Why the last fetch failed. OK where it did not, where one is under way, and for agents that
    // were never asked for.
    Status failure(const std::string& peer) const;
    bool underWay(const std::string& peer) const;
    // Its metadata has come, or nobody wants it any more: earlier failures are no longer told.
    void forget(const std::string& peer);
    // For the agent's end: everything under way ends with `why`, and so does what begins later.
    void endAll(const Status& why);

    // Agents whose failure is remembered; the one that failed first is forgotten beyond it.
    static constexpr size_t kMaxFailures = 4096;

  private:
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace nixl::exchange
