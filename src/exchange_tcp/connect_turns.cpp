// See connect_turns.h.
#include "exchange_tcp/connect_turns.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include "base/fork.h"

namespace nixl::exchange_tcp {

namespace {

struct Waiter {
    std::shared_ptr<ReactorGate> gate;
    std::function<void(ConnectTurns::Turn)> go;
};

struct Line {
    const uint64_t epoch = base::forkEpoch();
    size_t taken = 0;
    std::deque<Waiter> waiting;
};

// REQUIRES: ProcessLock::CONNECTS. Never destroyed; a forked child leaves its parent's alone, whose
// waiters do not exist in it.
Line& line() {
    static constinit Line* current = nullptr;
    if (current == nullptr || current->epoch != base::forkEpoch()) {
        current = new Line;
    }
    return *current;
}

void release(uint64_t epoch);

ConnectTurns::Turn makeTurn() {
    return {nullptr, [epoch = base::forkEpoch()](void*) { release(epoch); }};
}

// The next one's turn, or a free one.
void release(uint64_t epoch) {
    if (epoch != base::forkEpoch()) {
        return;
    }
    while (true) {
        std::optional<Waiter> next;
        {
            const MutexLock lock(base::processMutex(base::ProcessLock::CONNECTS));
            Line& all = line();
            if (all.waiting.empty()) {
                --all.taken;
                return;
            }
            next = std::move(all.waiting.front());
            all.waiting.pop_front();
        }
        if (next->gate->open()) {
            next->gate->run([go = std::move(next->go), turn = makeTurn()] { go(turn); });
            return;
        }
    }
}

}  // namespace

void ConnectTurns::ask(std::shared_ptr<ReactorGate> gate, std::function<void(Turn)> go) {
    {
        const MutexLock lock(base::processMutex(base::ProcessLock::CONNECTS));
        Line& all = line();
        if (all.taken >= std::min(ExchangeBudget::idleConnections() / 4, kMost)) {
            all.waiting.push_back({std::move(gate), std::move(go)});
            return;
        }
        ++all.taken;
    }
    go(makeTurn());
}

}  // namespace nixl::exchange_tcp
