// For tests: engines that talk over real sockets, and plans over plain memory.
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/reactor.h"
#include "base/socket.h"
#include "base/work_pool.h"
#include "connect/endpoints.h"
#include "peer/engine.h"
#include "session/testing_access.h"

namespace nixl::peer {

class TestCompletion final : public Completion {
  public:
    Status wait(const std::function<void()>& help = {},
                std::chrono::seconds limit = std::chrono::seconds(20)) {
        using Clock = std::chrono::steady_clock;
        const auto until = Clock::now() + limit;
        while (!final() && Clock::now() < until) {
            if (help) {
                help();
            } else {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));  // sleeps: between looks
            }
        }
        return final() ? status_ : Status::timeout("the test waited in vain");
    }
    const std::vector<SegmentFailure>& failures() const { return failures_; }

  private:
    void onFinal(XferState /*state*/,
                 Status&& status,
                 std::vector<SegmentFailure>&& failures) override {
        status_ = std::move(status);
        failures_ = std::move(failures);
    }
    Status status_;
    std::vector<SegmentFailure> failures_;
};

inline GrantsPtr opens(const Key& grant) {
    return std::make_shared<Grants>(grant);
}

// One agent's worth of the engine.
struct Side {
    explicit Side(const std::string& name, EngineConfig config = {}, const Key& grant = {1, 2, 3})
        : access(grant) {
        reactor = std::move(base::EpollReactor::create()).value();
        config.self.name = name;
        base::randomBytes(config.self.incarnation);
        identity = config.self;
        auto made = Engine::create(config, *reactor, pool, access);
        EXPECT_TRUE(made.ok()) << made.status().message();
        engine = std::move(made).value();
    }
    ~Side() { engine.reset(); }
    // Makes `other` known here; `change` may edit how it is reached.
    void setMetadata(Side& other, const std::function<void(Endpoints&)>& change = {}) {
        auto endpoints = Endpoints::decode(other.engine->connectionInfo());
        ASSERT_TRUE(endpoints.ok());
        if (change) {
            change(endpoints.value());
        }
        ASSERT_TRUE(
            engine->addPeer(other.identity, endpoints.value().encode(), opens(other.access.grant()))
                .ok());
    }
    Status connect(Side& other) {
        auto result = std::make_shared<std::promise<Status>>();
        engine->connect(other.identity,
                        [result](const Status& status) { result->set_value(status); });
        return result->get_future().get();
    }
    Status notify(const Identity& who, std::string message) {
        auto result = std::make_shared<std::promise<Status>>();
        Status status = engine->sendNotification(
            who, std::move(message),
            [result](const Status& outcome) { result->set_value(outcome); });
        return status.ok() ? result->get_future().get() : status;
    }

    TestAccess access;
    Identity identity;
    base::ThreadPool pool;
    std::unique_ptr<base::EpollReactor> reactor;
    std::unique_ptr<Engine> engine;
};

inline void tcpOnly(Endpoints& endpoints) {
    endpoints.bootId = {};
    endpoints.addresses = {std::string("\x7f\0\0\1", 4)};
    endpoints.bootId = base::bootId();
    endpoints.abstract.clear();
    endpoints.path.clear();
}

// A plan over plain memory, with what it refers to.
struct Plan {
    Plan(OpType op, Side& peer, std::vector<PlanRun> all) : runs(std::move(all)) {
        plan.op = op;
        name = peer.identity.name;
        plan.peer = {name, peer.identity.incarnation, false};
        for (PlanRun& run : runs) {
            run.planOffset = plan.bytes;
            plan.bytes += run.size * run.count;
            plan.segments += run.count;
        }
        local.resize(1);
        remote.resize(1);
        remote[0].id = 1;
        remote[0].generation = 1;
        plan.localRegions = local;
        plan.remoteRegions = remote;
        plan.runs = runs;
    }
    std::vector<PlanRun> runs;
    std::vector<PlanRegion> local;
    std::vector<PlanRegion> remote;
    std::string name;
    TransferPlan plan;
};

}  // namespace nixl::peer
