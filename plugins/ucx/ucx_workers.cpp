// See ucx_workers.h.
#include "ucx_workers.h"

#include <algorithm>

namespace nixl::ucx {
namespace {

// Collects the ends of the parts of one post.
struct Gathering {
    std::mutex mutex;
    size_t left;
    Status status;
    std::function<void(Status)> done;
    std::shared_ptr<const Completion> completion;  // the workers look at it until then

    void end(Status part) {
        {
            const std::lock_guard lock(mutex);
            // A lost peer says more than the cancel it may have met.
            if (!part.ok() && (status.ok() || status.code() == ErrorCode::CANCELED)) {
                status = std::move(part);
            }
            if (--left != 0) {
                return;
            }
        }
        done(std::move(status));
    }
};

}  // namespace

std::string packList(std::span<const std::string> all) {
    std::string bytes;
    for (const std::string& one : all) {
        for (unsigned shift = 0; shift < 32; shift += 8) {
            bytes.push_back(static_cast<char>(one.size() >> shift & 0xff));
        }
        bytes += one;
    }
    return bytes;
}

std::vector<std::string> unpackList(std::string_view bytes) {
    std::vector<std::string> all;
    while (!bytes.empty()) {
        uint32_t length = 0;
        for (unsigned i = 0; i < 4 && i < bytes.size(); ++i) {
            length |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
        }
        if (bytes.size() < 4 || length == 0 || length > bytes.size() - 4) {
            return {};
        }
        all.emplace_back(bytes.substr(4, length));
        bytes.remove_prefix(4 + length);
    }
    return all;
}

std::vector<std::vector<PlanRun>> dealEngines(const TransferPlan& plan, size_t engines) {
    std::vector<std::vector<PlanRun>> homes(engines);
    std::vector<uint64_t> bytes(engines);
    for (const PlanRun& run : plan.runs) {
        const PlanRegion& local = plan.localRegions[run.localRegion];
        const PlanRegion& remote = plan.remoteRegions[run.remoteRegion];
        const bool far = local.type != MemType::VRAM && remote.type == MemType::VRAM;
        const size_t home = (far ? remote : local).deviceId % engines;
        homes[home].push_back(run);
        bytes[home] += run.size * run.count;
    }
    std::vector<std::vector<size_t>> helpers;  // of each engine in use
    std::vector<size_t> used;
    std::vector<size_t> idle;
    for (size_t i = 0; i < engines; ++i) {
        (homes[i].empty() ? idle : used).push_back(i);
    }
    if (idle.empty() || used.empty()) {
        return homes;
    }
    helpers.resize(used.size());
    for (size_t i = 0; i < idle.size(); ++i) {
        helpers[i % used.size()].push_back(idle[i]);
    }
    for (size_t i = 0; i < used.size(); ++i) {
        const std::vector<PlanRun> whole = std::move(homes[used[i]]);
        std::vector<std::vector<PlanRun>> parts =
            dealRuns(whole, bytes[used[i]], helpers[i].size() + 1, kUcxPiece, kLeastUcxPart);
        homes[used[i]] = std::move(parts.front());
        for (size_t part = 1; part < parts.size(); ++part) {
            homes[helpers[i][part - 1]] = std::move(parts[part]);
        }
    }
    return homes;
}

Result<std::shared_ptr<UcxWorkers>> UcxWorkers::create(const UcxLibrary& ucx,
                                                       const UcxOptions& options) {
    std::shared_ptr<UcxWorkers> made(new UcxWorkers);
    made->several_ = options.severalEngines;
    std::vector<std::string> addresses;  // of the engines
    for (const std::string& devices : options.engines) {
        Result<std::unique_ptr<UcxContext>> context = UcxContext::create(ucx, options, devices);
        if (!context.ok()) {
            return context.status();
        }
        Engine engine;
        engine.context = std::move(context).value();
        std::vector<std::string> own;
        for (unsigned i = 0; i < std::max(options.workers, 1U); ++i) {
            Result<std::unique_ptr<UcxWorker>> worker = UcxWorker::create(engine.context);
            if (!worker.ok()) {
                return worker.status();
            }
            own.push_back(worker.value()->address());
            engine.workers.push_back(std::move(worker).value());
        }
        addresses.push_back(packList(own));
        made->engines_.push_back(std::move(engine));
    }
    made->addresses_ = made->several_ ? packList(addresses) : addresses.front();
    return made;
}

Status UcxWorkers::addPeer(const std::string& key, std::string_view addresses) {
    const std::vector<std::string> theirs =
        several_ ? unpackList(addresses) : std::vector{std::string(addresses)};
    for (size_t e = 0; e < engines_.size(); ++e) {
        const std::vector<std::string> workers =
            theirs.empty() ? theirs : unpackList(theirs[e % theirs.size()]);
        if (workers.empty()) {
            return Status::invalidParam("UCX: what the peer gave are no worker addresses");
        }
        for (size_t i = 0; i < engines_[e].workers.size(); ++i) {
            engines_[e].workers[i]->addPeer(key, workers[i % workers.size()]);
        }
    }
    return {};
}

void UcxWorkers::eachWorker(const std::function<void(UcxWorker&)>& call) {
    for (const Engine& engine : engines_) {
        for (const auto& worker : engine.workers) {
            call(*worker);
        }
    }
}

void UcxWorkers::removePeer(const std::string& key) {
    eachWorker([&](UcxWorker& worker) {
        worker.losePeer(key, Status::disconnected("the agent has been removed"), true);
    });
}

void UcxWorkers::losePeer(const std::string& key, const Status& why) {
    eachWorker([&](UcxWorker& worker) { worker.losePeer(key, why, false); });
}

void UcxWorkers::run(const UcxWork& work,
                     std::shared_ptr<const Completion> completion,
                     std::function<void(Status)> done) {
    auto all = std::make_shared<Gathering>();
    all->left = work.parts.size();
    all->done = std::move(done);
    all->completion = std::move(completion);
    const size_t parts = work.parts.size();  // `work` may be gone once the last one runs
    const size_t first = next_.fetch_add(parts, std::memory_order_relaxed);
    for (size_t i = 0; i < parts; ++i) {
        const UcxPart& part = work.parts[i];
        const auto& workers = engines_[part.engine].workers;
        UcxJob job;
        job.read = work.read;
        job.peer = work.peer;
        job.runs = part.runs;
        job.keys = work.keys[part.engine];
        job.completion = all->completion.get();
        job.done = [all](Status status) { all->end(std::move(status)); };
        workers[(first + i) % workers.size()]->run(std::move(job));
    }
}

void UcxWorkers::wake() {
    eachWorker([](UcxWorker& worker) { worker.wake(); });
}

}  // namespace nixl::ucx
