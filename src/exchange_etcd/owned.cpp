// See owned.h.
#include "exchange_etcd/owned.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace nixl::exchange_etcd {

using base::log;

namespace {

bool leaseIsGone(const Status& status) {
    return status.message().find("lease not found") != std::string::npos;
}

// Whether the same call may succeed later without a change of it.
bool mayPass(const Status& status) {
    return status.code() == ErrorCode::BACKEND || status.code() == ErrorCode::TIMEOUT;
}

}  // namespace

void Owned::withLease(std::function<void(Result<int64_t>)> then) {
    if (lease_ != 0) {
        return then(lease_);
    }
    waitForLease_.push_back(std::move(then));
    if (waitForLease_.size() > 1) {
        return;
    }
    const int64_t seconds = client_.settings().leaseTime.count();
    client_.call("/v3/lease/grant", Json{{"TTL", std::to_string(seconds)}, {"ID", "0"}},
                 [this](const Result<Json>& answer) {
                     Result<int64_t> outcome = int64_t{0};
                     if (!answer.ok()) {
                         outcome = answer.status();
                     } else if (lease_ = numberOf(answer.value(), "ID"); lease_ != 0) {
                         outcome = lease_;
                     } else {
                         outcome = Status::backend(client_.describe() + " gave no lease");
                     }
                     for (const auto& waiting : std::exchange(waitForLease_, {})) {
                         waiting(outcome);
                     }
                 });
}

void Owned::put(const std::string& key, std::shared_ptr<const std::string> value, Done done) {
    keys_[key] = {value, State::PUTTING};
    putNow(key, std::move(value), false, std::move(done));
}

void Owned::putNow(const std::string& key,
                   std::shared_ptr<const std::string> value,
                   bool again,
                   Done done) {
    withLease([this, key, value = std::move(value), again,
               done = std::move(done)](const Result<int64_t>& lease) {
        if (!lease.ok()) {
            ended(key, value, lease.status());
            return done(lease.status());
        }
        // What is put back never takes the place of what came meanwhile.
        const Values::Put what{key, value, lease.value(), again};
        values_.put(what,
                    [this, key, value, again, used = lease.value(), done](const Status& status) {
                        if (leaseIsGone(status)) {
                            lost(used);
                            return putNow(key, value, again, done);
                        }
                        ended(key, value, status);
                        done(status);
                    });
    });
}

void Owned::ended(const std::string& key,
                  const std::shared_ptr<const std::string>& value,
                  const Status& status) {
    const auto found = keys_.find(key);
    if (found == keys_.end() || found->second.value != value) {
        return;  // another value came meanwhile
    }
    if (!status.ok() && !mayPass(status)) {
        keys_.erase(found);
    } else {
        found->second.state = status.ok() ? State::PUT : State::FAILED;
    }
}

void Owned::remove(const std::string& key, Done done) {
    keys_.erase(key);
    if (lease_ == 0) {
        return done({});  // it went, or goes, with the lease that was lost
    }
    values_.remove(key, lease_, std::move(done));
}

void Owned::revoke(Done done) {
    keys_.clear();
    if (lease_ == 0) {
        return done({});
    }
    const int64_t lease = std::exchange(lease_, 0);
    client_.call("/v3/lease/revoke", Json{{"ID", std::to_string(lease)}},
                 [done = std::move(done)](const Result<Json>& answer) {
                     done(answer.ok() ? Status() : answer.status());
                 });
}

void Owned::lost(int64_t lease) {
    if (lease_ == lease) {
        lease_ = 0;
        for (auto& [key, owned] : keys_) {
            owned.state = owned.state == State::PUT ? State::LOST : owned.state;
        }
    }
}

void Owned::keepAlive(Done done) {
    putBack();
    if (lease_ == 0) {
        return done({});
    }
    const auto patience = std::min<std::chrono::milliseconds>(
        client_.settings().timeout, std::max<std::chrono::milliseconds>(
                                        client_.settings().leaseTime / 3, std::chrono::seconds(1)));
    const int64_t lease = lease_;
    client_.call(
        "/v3/lease/keepalive", Json{{"ID", std::to_string(lease)}},
        [this, lease, done = std::move(done)](const Result<Json>& answer) {
            if (!answer.ok()) {
                return done(answer.status());
            }
            // A dead lease is an answer without a time.
            if (numberOf(field(answer.value(), "result"), "TTL") <= 0) {
                log(LogLevel::WARN,
                    client_.describe() +
                        ": the lease of this process has run out (etcd was away, or the process"
                        " was stopped, for longer than lease_time); its entries are put back");
                lost(lease);
            }
            putBack();
            done({});
        },
        patience);
}

// What could not be put takes its place; what went with a lost lease only a free one.
void Owned::putBack() {
    for (auto& [key, owned] : keys_) {
        if (owned.state != State::FAILED && owned.state != State::LOST) {
            continue;
        }
        const bool again = owned.state == State::LOST;
        owned.state = State::PUTTING;
        inOrder_(key,
                 [this, key = key, value = owned.value, again](const std::function<void()>& next) {
                     const auto found = keys_.find(key);
                     if (found == keys_.end() || found->second.value != value) {
                         return next();  // removed, or put anew
                     }
                     putNow(key, value, again, [next](const Status& status) {
                         if (!status.ok()) {
                             log(LogLevel::DEBUG, "not put back: " + status.message());
                         }
                         next();
                     });
                 });
    }
}

}  // namespace nixl::exchange_etcd
