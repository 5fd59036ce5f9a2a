// AgentImpl: birth, end, transfers by id, deadlines.
#include "agent/agent_impl.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include <sys/random.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/utf8.h"
#include "metadata/blob.h"

namespace nixl::detail {

using agent::Transfer;
using agent::TransferState;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto kEndLimit = std::chrono::milliseconds(900);
constexpr auto kGentleRest = std::chrono::milliseconds(600);      // of it, after connections end
constexpr auto kTelemetryLimit = std::chrono::milliseconds(900);  // for the last word of exporters
constexpr auto kCallLimit = std::chrono::milliseconds(50);        // at least, for calls to leave
constexpr auto kReleaseLimit = std::chrono::milliseconds(100);    // decisions: cancel is bounded

Result<peer::Key> randomKey() {
    peer::Key key{};
    if (getrandom(key.data(), key.size(), 0) != static_cast<ssize_t>(key.size())) {
        return Status(ErrorCode::UNKNOWN, "the system gives no random numbers (getrandom)", errno);
    }
    return key;
}

// For what a backend that does not stop may still touch; leak checkers see it here.
void keepForEver(std::vector<std::shared_ptr<void>> things) {
    static constinit std::vector<std::shared_ptr<void>>* kept = nullptr;
    const MutexLock lock(base::processMutex(base::ProcessLock::KEPT));
    if (kept == nullptr) {
        kept = new std::vector<std::shared_ptr<void>>();
    }
    std::move(things.begin(), things.end(), std::back_inserter(*kept));
}

}  // namespace

AgentImpl::AgentImpl(AgentConfig config, std::shared_ptr<agent::AgentShared> shared)
    : config_(std::move(config)),
      shared_(std::move(shared)),
      forkEpoch_(base::forkEpoch()),
      transfers_(&AgentImpl::disposeTransfer, this) {}

Result<std::shared_ptr<AgentImpl>> AgentImpl::create(std::string name, AgentConfig config) {
    if (name.empty() || name.size() > metadata::kMaxName) {
        return Status::invalidParam("an agent's name has 1 to 1024 bytes, not " +
                                    std::to_string(name.size()));
    }
    if (!base::isUtf8(name)) {
        return Status::invalidParam("an agent's name must be UTF-8");
    }
    Result<peer::Key> incarnation = randomKey();
    Result<peer::Key> grant = randomKey();
    if (!incarnation.ok() || !grant.ok()) {
        return incarnation.ok() ? grant.status() : incarnation.status();
    }
    auto shared = std::make_shared<agent::AgentShared>(
        peer::Identity{std::move(name), incarnation.value()}, grant.value(),
        std::chrono::microseconds(config.busyPollMicroseconds));
    std::shared_ptr<AgentImpl> impl(new AgentImpl(std::move(config), std::move(shared)));
    NIXL_RETURN_IF_ERROR(impl->start());
    return impl;
}

Status AgentImpl::start() {
    base::loadLogLevel();
    NIXL_RETURN_IF_ERROR(readTelemetrySettings());
    Result<std::unique_ptr<base::EpollReactor>> reactor =
        base::EpollReactor::create(std::chrono::microseconds(config_.busyPollMicroseconds));
    if (!reactor.ok()) {
        return reactor.status();
    }
    reactor_ = std::move(reactor).value();
    pool_ = std::make_unique<base::ThreadPool>();
    if (config_.enableProgThread) {
        progress_ = std::make_unique<agent::ProgressThread>([this] {
            bool needed = false;
            for (const Loaded& loaded : loadedBackends()) {
                if (loaded->backend->needsProgress()) {
                    loaded->backend->progress();
                    needed = true;
                }
            }
            return needed && transfers_.size() != 0;
        });
        NIXL_RETURN_IF_ERROR(progress_->start());
    }
    peer::enterLocalAgent(self().incarnation, shared_);
    NIXL_RETURN_IF_ERROR(createConfigured());
    NIXL_RETURN_IF_ERROR(startExchange());
    NIXL_RETURN_IF_ERROR(startCentral());
    startTelemetry();
    if (base::logs(LogLevel::DEBUG)) {
        base::log(LogLevel::DEBUG, "Initialized NIXL agent: " + self().name);
    }
    return {};
}

AgentImpl::~AgentImpl() {
    shutDown();
}

bool AgentImpl::forked() const noexcept {
    return base::forkEpoch() != forkEpoch_;
}

Status AgentImpl::usable() const {
    if (forked()) {
        return Status::notAllowed("agent \"" + self().name +
                                  "\" belongs to a parent process; this is its forked child " +
                                  std::to_string(getpid()) + " of parent " +
                                  std::to_string(getppid()) + ": make a new agent here");
    }
    if (ended_.load()) {
        return Status::notAllowed("agent \"" + self().name + "\" has been closed");
    }
    return {};
}

// Cancels every transfer; waits until no backend is busy with one, or the limit.
void AgentImpl::endTransfers(base::Deadline limit) {
    for (const HandleId id : transfers_.ids()) {
        if (TransferRef held = transfers_.find(id); held) {
            held->cancel(limit - kGentleRest,
                         Status::canceled("agent \"" + self().name + "\" has ended"));
        }
        transfers_.retire(id);
    }
    std::ranges::for_each(lists_.ids(), [this](uint64_t id) { lists_.retire(id); });
    endBackendConnections();  // for those whose peer does not answer
    bool quiet = false;
    while (!quiet) {
        sweepParked();
        MutexLock lock(parkedMutex_);
        quiet = parked_.empty() || Clock::now() >= limit;
        if (!quiet) {
            usleep(200);
        }
    }
}

void AgentImpl::shutDown() {
    // In a forked child threads, sockets and locks are the parent's: touch nothing.
    if (forked() || ended_.exchange(true)) {
        return;
    }
    if (publisher_ != nullptr) {
        publisher_->stop(kTelemetryLimit);
        telemetryOver_.store(true);
    }
    peer::leaveLocalAgent(self().incarnation);
    shared_->close();
    shared_->signal().raise();  // waiting calls return
    endExchange();
    const base::Deadline limit = Clock::now() + kEndLimit;
    endTransfers(limit);
    endSessions();  // who waits for one returns
    const bool empty = gate_.awaitEmpty(std::max(limit, Clock::now() + kCallLimit));
    progress_.reset();
    if (empty) {
        central_.reset();  // takes back what it has there
    }
    MutexLock lock(parkedMutex_);
    WriteLock backends_lock(backendsMutex_);
    if (!parked_.empty() || !empty) {
        base::log(
            LogLevel::WARN,
            "agent \"" + self().name + "\": " +
                (parked_.empty() ? std::string("a call")
                                 : std::to_string(parked_.size()) + " transfer(s) of backend " +
                                       parked_.front()->backendName()) +
                " did not stop within 0.9 s; their memory is kept until the process ends");
        std::vector<std::shared_ptr<void>> rest(std::make_move_iterator(parked_.begin()),
                                                std::make_move_iterator(parked_.end()));
        parked_.clear();
        rest.push_back(std::make_shared<LoadedList>(backends_));
        rest.push_back(shared_);
        {
            MutexLock engine_lock(engineMutex_);
            rest.emplace_back(std::move(exchange_));
            rest.emplace_back(std::move(central_));
            rest.emplace_back(std::move(engine_));
        }
        rest.emplace_back(std::move(reactor_));
        rest.emplace_back(std::move(pool_));
        keepForEver(std::move(rest));
        return;
    }
    dropParts();
}

void AgentImpl::dropParts() {
    shared_->regions().clear();
    {
        WriteLock peers_lock(peersMutex_);
        peers_.clear();
    }
    engineReady_.store(nullptr, std::memory_order_release);
    {
        MutexLock engine_lock(engineMutex_);
        exchangeReady_.store(nullptr, std::memory_order_release);
        exchange_.reset();
        engine_.reset();
    }
    backends_.clear();
    pool_.reset();
    reactor_.reset();
}

Result<AgentImpl::TransferRef> AgentImpl::transfer(HandleId id) {
    TransferRef found = transfers_.find(id);
    if (!found) {
        return Status::invalidParam("transfer handle " + std::to_string(id) +
                                    " was released, or is of another agent than \"" + self().name +
                                    "\"");
    }
    return found;
}

Result<TransferTelemetry> AgentImpl::telemetry(HandleId id) {
    Result<TransferRef> found = transfer(id);
    if (!found.ok()) {
        return found.status();
    }
    if (!figures_) {
        return Status(ErrorCode::NO_TELEMETRY, "agent \"" + self().name +
                                                   "\": NIXL_TELEMETRY_ENABLE turned the figures "
                                                   "of its transfers off");
    }
    return found.value()->telemetry();
}

Status AgentImpl::post(HandleId id, std::optional<std::string_view> notification) {
    Result<TransferRef> found = transfer(id);
    if (!found.ok()) {
        return found.status();
    }
    Transfer& posted = *found.value();
    NIXL_RETURN_IF_ERROR(posted.post(notification));
    if (posted.word() == TransferState::PENDING) {
        if (progress_ != nullptr && posted.needsProgress()) {  // a wake costs about 1 us
            progress_->wake();
        }
        if (config_.xferTimeout.count() > 0) {
            watchDeadline(id, posted.state());
        }
    }
    return {};
}

Status AgentImpl::releaseTransfer(HandleId id) {
    {
        Result<TransferRef> found = transfer(id);
        if (!found.ok()) {
            return found.status();
        }
        found.value()->cancel(Clock::now() + kReleaseLimit);
    }
    transfers_.retire(id);
    return {};
}

Status AgentImpl::releaseList(HandleId id) {
    if (!lists_.retire(id)) {
        return Status::invalidParam("prepared list " + std::to_string(id) +
                                    " was released, or is of another agent than \"" + self().name +
                                    "\"");
    }
    return {};
}

// The last reference to a transfer is gone: destroy it, or park it while its backend is busy.
void AgentImpl::disposeTransfer(void* self, std::unique_ptr<Transfer> transfer) {
    if (!transfer->busy()) {
        return;
    }
    auto* const impl = static_cast<AgentImpl*>(self);
    if (impl->forked()) {
        [[maybe_unused]] const Transfer* const kept = transfer.release();  // the parent's
        return;
    }
    MutexLock lock(impl->parkedMutex_);
    impl->parked_.push_back(std::move(transfer));
    impl->anyParked_.store(true, std::memory_order_release);
}

void AgentImpl::sweepParked() {
    if (!anyParked_.load(std::memory_order_acquire)) {
        return;
    }
    std::vector<std::unique_ptr<Transfer>> finished;
    MutexLock lock(parkedMutex_);
    for (size_t i = 0; i < parked_.size();) {
        parked_[i]->progress();
        if (parked_[i]->busy()) {
            ++i;
            continue;
        }
        finished.push_back(std::move(parked_[i]));
        parked_[i] = std::move(parked_.back());
        parked_.pop_back();
    }
    anyParked_.store(!parked_.empty(), std::memory_order_release);
}

// All deadlines of an agent are equally long, so the oldest is always in front.
void AgentImpl::watchDeadline(HandleId id, const std::shared_ptr<TransferState>& state) {
    MutexLock lock(deadlineMutex_);
    while (!deadlines_.empty()) {
        const std::shared_ptr<TransferState> front = deadlines_.front().state.lock();
        if (front != nullptr && front->word.load() == TransferState::PENDING) {
            break;
        }
        deadlines_.pop_front();
    }
    deadlines_.push_back({Clock::now() + config_.xferTimeout, id, state});
    armDeadline();
}

void AgentImpl::armDeadline() {
    if (deadlineTimer_ != 0 || deadlines_.empty()) {
        return;
    }
    deadlineTimer_ = reactor_->startTimer(deadlines_.front().when,
                                          asCall([](AgentImpl& agent) { agent.onDeadline(); }));
}

// For the reactor: counts as a call, so that the end of the agent waits for it.
std::function<void()> AgentImpl::asCall(std::function<void(AgentImpl&)> what) {
    // Weak: the reactor must not keep the agent alive.
    return [weak = weak_from_this(), what = std::move(what)] {
        if (const std::shared_ptr<AgentImpl> self = weak.lock(); self != nullptr) {
            const agent::CallGate::Call inside(self->gate_);
            if (!self->ended_.load()) {
                what(*self);
            }
        }
    };
}

void AgentImpl::onDeadline() {
    std::vector<HandleId> late;
    const base::Deadline now = Clock::now();
    {
        MutexLock lock(deadlineMutex_);
        deadlineTimer_ = 0;
        while (!deadlines_.empty() && deadlines_.front().when <= now) {
            const std::shared_ptr<TransferState> state = deadlines_.front().state.lock();
            if (state != nullptr && state->pendingSince(now - config_.xferTimeout) != 0) {
                late.push_back(deadlines_.front().id);
            }
            deadlines_.pop_front();
        }
        armDeadline();
    }
    if (late.empty()) {
        return;
    }
    const base::Deadline started = now - config_.xferTimeout;
    endLate(late, started, [](agent::Transfer& transfer, uint64_t post, Status why) {
        transfer.requestCancel(post, std::move(why));
    });
    // As long as a cancel waits; what has not stopped by then is left behind.
    reactor_->startTimer(
        now + kReleaseLimit, asCall([late, started](AgentImpl& agent) {
            agent.endLate(late, started, [](agent::Transfer& transfer, uint64_t post, Status why) {
                transfer.cancel(post, Clock::now(), std::move(why));
            });
        }));
}

// For those of these transfers that are still in the post of then.
void AgentImpl::endLate(const std::vector<HandleId>& ids,
                        base::Deadline started,
                        const std::function<void(agent::Transfer&, uint64_t, Status)>& end) {
    for (const HandleId id : ids) {
        TransferRef held = transfers_.find(id);
        if (const uint64_t post = held ? held->state()->pendingSince(started) : 0; post != 0) {
            end(*held, post,
                Status::timeout("transfer with agent \"" + held->peerName() +
                                "\" did not end within xfer_timeout (" +
                                std::to_string(config_.xferTimeout.count()) + " ms)"));
        }
    }
}

}  // namespace nixl::detail
