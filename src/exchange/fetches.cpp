// See fetches.h.
#include "exchange/fetches.h"

#include <map>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace nixl::exchange {

struct Fetches::State {
    struct Open {
        std::string peer;
        Done done;
    };
    struct Failure {
        Status why;
        uint64_t number = 0;  // greater: failed later
    };

    void end(uint64_t number, const Status& status);
    void remember(const std::string& peer, const Status& why) NIXL_REQUIRES(mutex);

    Mutex mutex;
    uint64_t next NIXL_GUARDED_BY(mutex) = 1;
    std::map<uint64_t, Open> open NIXL_GUARDED_BY(mutex);
    std::map<std::string, size_t> count NIXL_GUARDED_BY(mutex);  // of those open, by peer
    std::map<std::string, Failure> failures NIXL_GUARDED_BY(mutex);
    std::map<uint64_t, std::string> byAge NIXL_GUARDED_BY(mutex);  // of the failures
    Status ended NIXL_GUARDED_BY(mutex);

    void drop(const std::string& peer) NIXL_REQUIRES(mutex) {
        if (const auto found = failures.find(peer); found != failures.end()) {
            byAge.erase(found->second.number);
            failures.erase(found);
        }
    }
};

void Fetches::State::remember(const std::string& peer, const Status& why) {
    drop(peer);
    const uint64_t number = next++;
    failures[peer] = {why, number};
    byAge[number] = peer;
    if (failures.size() > kMaxFailures) {
        failures.erase(byAge.begin()->second);
        byAge.erase(byAge.begin());
    }
}

void Fetches::State::end(uint64_t number, const Status& status) {
    Done done;
    {
        const MutexLock lock(mutex);
        const auto found = open.find(number);
        if (found == open.end()) {
            return;
        }
        const std::string peer = std::move(found->second.peer);
        done = std::move(found->second.done);
        open.erase(found);
        if (const auto counted = count.find(peer); --counted->second == 0) {
            count.erase(counted);
        }
        if (status.ok()) {
            drop(peer);
        } else {
            remember(peer, status);
        }
    }
    if (done) {
        done(status);
    }
}

Fetches::Fetches() : state_(std::make_shared<State>()) {}

Fetches::Done Fetches::begin(const std::string& peer, Done done) {
    uint64_t number = 0;
    Status ended;
    {
        const MutexLock lock(state_->mutex);
        number = state_->next++;
        state_->open[number] = {peer, std::move(done)};
        state_->count[peer] += 1;
        state_->drop(peer);
        ended = state_->ended;
    }
    if (!ended.ok()) {
        state_->end(number, ended);
    }
    return [state = state_, number](const Status& status) { state->end(number, status); };
}

Status Fetches::failure(const std::string& peer) const {
    const MutexLock lock(state_->mutex);
    const auto found = state_->failures.find(peer);
    return found == state_->failures.end() || state_->count.contains(peer) ? Status()
                                                                           : found->second.why;
}

bool Fetches::underWay(const std::string& peer) const {
    const MutexLock lock(state_->mutex);
    return state_->count.contains(peer);
}

void Fetches::forget(const std::string& peer) {
    const MutexLock lock(state_->mutex);
    state_->drop(peer);
}

void Fetches::endAll(const Status& why) {
    std::vector<uint64_t> numbers;
    {
        const MutexLock lock(state_->mutex);
        state_->ended = why;
        for (const auto& [number, one] : state_->open) {
            numbers.push_back(number);
        }
    }
    for (const uint64_t number : numbers) {
        state_->end(number, why);
    }
}

}  // namespace nixl::exchange
