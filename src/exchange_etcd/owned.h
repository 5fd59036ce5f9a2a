// What this process owns in an etcd: keys that live as long as its lease. Keeps the lease alive;
// where etcd has lost it (etcd was away, or this process was stopped, for longer than it lasts),
// takes a new one and puts back what nobody else has taken meanwhile. On the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "exchange_etcd/values.h"

namespace nixl::exchange_etcd {

class Owned {
  public:
    using Done = Values::Done;

    // Runs a step of a key's after those before it; a step calls `next` when it has ended.
    using Step = std::function<void(std::function<void()> next)>;
    using InOrder = std::function<void(const std::string& key, Step step)>;

    Owned(Client& client, Values& values, InOrder in_order)
        : client_(client), values_(values), inOrder_(std::move(in_order)) {}
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;

    // A failure that time may mend is reported, and the value put as soon as that is possible.
    void put(const std::string& key, std::shared_ptr<const std::string> value, Done done);
    bool owns(const std::string& key) const { return keys_.contains(key); }
    void remove(const std::string& key, Done done);
    // At the end: all keys go with the lease.
    void revoke(Done done);

    // To be called every third of the lease's time; `done` says whether etcd answered.
    void keepAlive(Done done);
    bool leased() const { return lease_ != 0; }

  private:
    enum class State : uint8_t {
        PUTTING,  // under way
        PUT,      // etcd has confirmed this value
        FAILED,   // could not be put; wanted still
        LOST,     // was put, and went with its lease
    };
    struct Key {
        std::shared_ptr<const std::string> value;
        State state = State::PUTTING;
    };

    void withLease(std::function<void(Result<int64_t>)> then);
    void putNow(const std::string& key,
                std::shared_ptr<const std::string> value,
                bool again,
                Done done);
    void ended(const std::string& key,
               const std::shared_ptr<const std::string>& value,
               const Status& status);
    void lost(int64_t lease);
    void putBack();

    Client& client_;
    Values& values_;
    const InOrder inOrder_;
    int64_t lease_ = 0;
    std::vector<std::function<void(Result<int64_t>)>> waitForLease_;
    std::map<std::string, Key> keys_;
};

}  // namespace nixl::exchange_etcd
