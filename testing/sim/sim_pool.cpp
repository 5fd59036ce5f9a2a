// The stream pool (lanes/stream/pool.h) with the lane's own connections, jobs and targets: posts,
// cancels, connections that open, cannot be opened, break or are shut down with the session, in any
// order and with callbacks that post again. Its two invariants are looked at after every step:
// a queued job has a connection or one has been asked for, and ends when the network is well again;
// after cancel() no byte of the job's memory moves. No threads; a channel is two strings.
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/poll_set.h"
#include "base/reactor.h"
#include "lanes/stream/pool.h"
#include "lanes/stream/target.h"
#include "testing/sim/sim.h"
#include "testing/sim/world.h"

namespace nixl::sim {

namespace {

const base::Digest kKey{9};
constexpr size_t kJobBytes = 700;

// One connection: what is on its way, and the target at its other end.
struct Wire {
    explicit Wire(World& its_world)
        : world(its_world),
          event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
          target(its_world.access, kKey) {}

    World& world;
    const base::Fd event;  // readable when the pool's side has something to read
    std::string up;        // to the target
    std::string down;      // to the pool
    bool shut = false;     // by the pool's side
    bool cut = false;      // by the network
    bool over = false;     // the pool's side has seen its end
    bool readable = false;
    peer::StreamTarget target;

    void signal() {
        const bool wanted = !down.empty() || shut || cut;
        uint64_t value = 1;
        if (wanted != std::exchange(readable, wanted)) {
            static_cast<void>(wanted ? !write(event.get(), &value, sizeof(value))
                                     : !read(event.get(), &value, sizeof(value)));
        }
    }

    void turnTarget() {
        if (cut) {
            return;
        }
        std::array<iovec, 8> vectors{};
        size_t count = target.inputSpace(vectors.data(), vectors.size());
        size_t taken = 0;
        for (size_t i = 0; i < count && taken < up.size(); ++i) {
            const size_t here = std::min(vectors[i].iov_len, up.size() - taken);
            up.copy(static_cast<char*>(vectors[i].iov_base), here, taken);
            taken += here;
        }
        if (count > 0) {
            if (!target.received(taken).ok()) {
                world.broken("the target finds a violation of the protocol");
            }
            up.erase(0, taken);
        }
        if (!target.wantsOutput()) {
            return;
        }
        count = target.output(vectors.data(), vectors.size());
        size_t put = 0;
        const size_t most = 1 + world.pick(2000);
        for (size_t i = 0; i < count && put < most; ++i) {
            const size_t here = std::min(vectors[i].iov_len, most - put);
            down.append(static_cast<char*>(vectors[i].iov_base), here);
            put += here;
        }
        target.sent(put);
        signal();
    }
};

class WireChannel final : public base::Channel {
  public:
    explicit WireChannel(std::shared_ptr<Wire> wire) : wire_(std::move(wire)) {}

    Result<size_t> receive(iovec* vectors, size_t count) override {
        size_t taken = 0;
        const size_t most = 1 + wire_->world.pick(4000);
        for (size_t i = 0; i < count; ++i) {
            const size_t here =
                std::min({vectors[i].iov_len, wire_->down.size() - taken, most - taken});
            wire_->down.copy(static_cast<char*>(vectors[i].iov_base), here, taken);
            taken += here;
        }
        wire_->down.erase(0, taken);
        wire_->signal();
        if (taken == 0 && (wire_->shut || wire_->cut)) {
            wire_->over = true;
            return Status::disconnected("connection lost");
        }
        return taken;
    }
    Result<size_t> send(const iovec* vectors, size_t count) override {
        if (wire_->shut || wire_->cut) {
            wire_->over = true;
            return Status::disconnected("connection lost");
        }
        size_t put = 0;
        const size_t most = wire_->world.pick(3000);
        for (size_t i = 0; i < count; ++i) {
            const size_t here = std::min(vectors[i].iov_len, most - put);
            wire_->up.append(static_cast<const char*>(vectors[i].iov_base), here);
            put += here;
            if (here < vectors[i].iov_len) {
                break;
            }
        }
        return put;
    }
    Result<size_t> sendWith(const iovec* vectors,
                            size_t count,
                            std::span<const int> /*descriptors*/) override {
        return send(vectors, count);
    }
    void allowDescriptors(size_t /*limit*/) override {}
    std::vector<base::Fd> takeDescriptors(size_t /*count*/) override { return {}; }
    int fd() const override { return wire_->event.get(); }
    void shutdown() override {
        wire_->shut = true;
        wire_->signal();
    }

  private:
    const std::shared_ptr<Wire> wire_;
};

// Without threads: whoever serves a connection is this model.
struct Machine {
    std::unique_ptr<base::EpollReactor> reactor = std::move(base::EpollReactor::create()).value();
    base::PollSet pollSet{*reactor, std::chrono::microseconds(100)};
    peer::DataLoop loop{0, pollSet};
};

class PoolModel {
  public:
    PoolModel(uint64_t seed, Bug bug) : world_(seed, bug) {
        here_.assign(kJobs * kJobBytes, 'h');
        there_.assign(kJobs * kJobBytes, 't');
        world_.access.enter(1, there_.data(), there_.size());
        pool_ = std::make_shared<peer::StreamPool>(
            peer::StreamPoolConfig{"bob", static_cast<unsigned>(1 + world_.pick(3)), ""},
            machine().loop, world_.access, [this] { ++asked_; });
    }
    ~PoolModel() {
        pool_->fail(Status::canceled("the schedule ends"));
        while (machine().loop.serveReady()) {
        }
    }
    PoolModel(const PoolModel&) = delete;
    PoolModel& operator=(const PoolModel&) = delete;

    Outcome run() {
        for (uint64_t steps = 50 + world_.pick(100); steps > 0 && world_.outcome.good; --steps) {
            ++world_.outcome.steps;
            step();
            check();
        }
        heal();
        return world_.outcome;
    }

  private:
    static constexpr size_t kJobs = 48;  // more than one connection takes at a time

    struct Job final : peer::StreamJobOwner {
        explicit Job(PoolModel& its_model) : model(its_model) {}
        void streamed(Status status, std::vector<SegmentFailure> /*failures*/) override {
            ended = true;
            good = status.ok();
            model.onEnd();
        }
        PoolModel& model;
        TransferPlan plan;
        PlanRun run{};
        PlanRegion region{};
        std::shared_ptr<peer::StreamJob> job;
        bool ended = false;
        bool good = false;
    };
    struct Area {                  // of memory, on both sides
        std::shared_ptr<Job> job;  // null: free
        bool canceled = false;     // its memory is canaries
    };
    static Machine& machine() {
        static auto* const one = new Machine;  // its reactor's thread ends with the process
        return *one;
    }

    void step() {
        switch (world_.pick(12)) {
            case 0:
            case 1:
                for (uint64_t many = 1 + world_.pick(20); many > 0; --many) {
                    post();
                }
                return;
            case 2:
                return cancel(world_.pick(kJobs));
            case 3:
                return answerOpen(world_.pick(4) != 0);
            case 4:
                if (!wires_.empty() && world_.pick(4) == 0) {
                    Wire& wire = *wires_[world_.pick(wires_.size())];
                    wire.cut = true;
                    wire.signal();
                }
                return;
            case 5:
                if (world_.pick(10) == 0) {
                    asked_ = 0;  // what is being opened goes with the session
                    pool_->fail(Status::disconnected("the session is lost"));
                }
                return;
            default:
                return turn();
        }
    }

    void turn() {
        if (!wires_.empty() && world_.pick(2) == 0) {
            wires_[world_.pick(wires_.size())]->turnTarget();
        } else {
            static_cast<void>(machine().loop.serveReady());
            std::erase_if(wires_, [](const auto& one) { return one->over; });
        }
    }

    void post() {
        const size_t at = world_.pick(kJobs);
        if (areas_[at].job != nullptr && !(areas_[at].job->ended && !areas_[at].canceled)) {
            return;
        }
        const auto job = std::make_shared<Job>(*this);
        areas_[at] = {job, false};
        std::fill_n(here_.begin() + static_cast<ptrdiff_t>(at * kJobBytes), kJobBytes, 'h');
        std::fill_n(there_.begin() + static_cast<ptrdiff_t>(at * kJobBytes), kJobBytes, 't');
        const uint64_t size = 1 + world_.pick(kJobBytes);
        job->plan.op = world_.pick(2) == 0 ? OpType::READ : OpType::WRITE;
        job->run = {reinterpret_cast<uint64_t>(here_.data() + at * kJobBytes),
                    reinterpret_cast<uint64_t>(there_.data() + at * kJobBytes),
                    size,
                    0,
                    0,
                    1};
        job->region.id = 1;
        job->region.generation = 1;
        job->plan.bytes = size;
        job->plan.segments = 1;
        job->plan.remoteRegions = {&job->region, 1};
        job->plan.runs = {&job->run, 1};
        job->job = std::make_shared<peer::StreamJob>(
            size,
            std::make_shared<peer::StreamParts>(
                job->plan, std::make_shared<peer::Grants>(world_.access.grant()),
                world_.pick(2) == 0),
            job);
        ++world_.outcome.transfers;
        pool_->start(job->job, world_.pick(2) == 0 ? size : 0);
    }

    // Inside a callback of the pool: whoever hears of an end posts again at once.
    void onEnd() {
        if (depth_ == 0 && !healing_ && world_.pick(4) == 0) {
            ++depth_;
            post();
            --depth_;
        }
    }

    void cancel(size_t at) {
        Area& area = areas_[at];
        if (area.job == nullptr || area.job->ended || area.canceled) {
            return;
        }
        const auto job = area.job;
        area.canceled = true;
        const auto release = [&] {
            std::fill_n(here_.begin() + static_cast<ptrdiff_t>(at * kJobBytes), kJobBytes, 'c');
        };
        if (world_.bug == Bug::EARLY_RELEASE) {
            release();
            return;  // as if cancel() had returned
        }
        pool_->cancel(job->job, Status::canceled("canceled"));
        if (job->plan.op == OpType::READ) {
            job->job->abandon(Status::canceled("canceled"));
        }
        release();
    }

    void answerOpen(bool good) {
        if (asked_ == 0) {
            return;
        }
        asked_ = 0;  // one dialler serves all who asked meanwhile
        if (world_.bug == Bug::LOST_OPEN && world_.pick(3) == 0) {
            return;
        }
        if (!good) {
            return pool_->openFailed(Status::disconnected("nobody answers"));
        }
        wires_.push_back(std::make_shared<Wire>(world_));
        pool_->adopt(std::make_unique<WireChannel>(wires_.back()), kKey);
    }

    void check() {
        if (pool_->waiting() && pool_->connections() == 0 && asked_ == 0) {
            world_.broken("a job is queued, and no connection is there or has been asked for");
        }
        for (size_t at = 0; at < kJobs; ++at) {
            if (!areas_[at].canceled) {
                continue;
            }
            const auto from = here_.begin() + static_cast<ptrdiff_t>(at * kJobBytes);
            if (std::any_of(from, from + kJobBytes, [](char c) { return c != 'c'; })) {
                world_.broken("memory of a canceled transfer was written");
            }
            const auto to = there_.begin() + static_cast<ptrdiff_t>(at * kJobBytes);
            if (std::any_of(to, to + kJobBytes, [](char c) { return c == 'c'; })) {
                world_.broken("memory of a canceled transfer was sent");
            }
        }
    }

    bool allEnded() const {
        return std::all_of(areas_.begin(), areas_.end(),
                           [](const Area& area) { return area.job == nullptr || area.job->ended; });
    }

    // Nothing breaks any more: every job comes to its end, driven by what the pool asked for alone.
    void heal() {
        healing_ = true;
        for (int round = 0; round < 4000 && world_.outcome.good && !allEnded(); ++round) {
            answerOpen(true);
            turn();
            check();
        }
        if (world_.outcome.good && !allEnded()) {
            world_.broken("a job waits for ever");
        }
        for (size_t at = 0; at < kJobs && world_.outcome.good; ++at) {
            const Area& area = areas_[at];
            if (area.job == nullptr || area.canceled || !area.job->good) {
                continue;
            }
            const size_t size = area.job->plan.bytes;
            if (here_.compare(at * kJobBytes, size, there_, at * kJobBytes, size) != 0) {
                world_.broken("a transfer that is done has not moved its bytes");
            }
        }
    }

    World world_;
    std::string here_;
    std::string there_;
    std::array<Area, kJobs> areas_;
    std::vector<std::shared_ptr<Wire>> wires_;
    size_t asked_ = 0;
    int depth_ = 0;
    bool healing_ = false;
    std::shared_ptr<peer::StreamPool> pool_;
};

}  // namespace

Outcome runPool(uint64_t seed, Bug bug) {
    return PoolModel(seed ^ 0xda3e39cb94b95bdbULL, bug).run();
}

}  // namespace nixl::sim
