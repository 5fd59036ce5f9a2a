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

// The addresses as bytes: for each its length (u32, little endian) and itself.
void append(std::string& bytes, const std::string& address) {
    for (unsigned shift = 0; shift < 32; shift += 8) {
        bytes.push_back(static_cast<char>(address.size() >> shift & 0xff));
    }
    bytes += address;
}

std::vector<std::string> split(std::string_view bytes) {
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

// `count` segments of a run, from its `first` one.
PlanRun slice(const PlanRun& run, uint64_t first, uint64_t count) {
    PlanRun part = run;
    part.local += first * run.localStride;
    part.remote += first * run.remoteStride;
    part.planOffset += first * run.size;
    part.count = count;
    return part;
}

// The run's one segment as pieces.
void cut(const PlanRun& segment, uint64_t piece, std::vector<PlanRun>& out) {
    PlanRun whole = segment;
    whole.size = whole.localStride = whole.remoteStride = piece;
    whole.count = segment.size / piece;
    if (whole.count != 0) {
        out.push_back(whole);
    }
    if (const uint64_t moved = whole.count * piece; moved != segment.size) {
        PlanRun rest = segment;
        rest.local += moved;
        rest.remote += moved;
        rest.planOffset += moved;
        rest.size -= moved;
        out.push_back(rest);
    }
}

}  // namespace

std::vector<std::vector<PlanRun>> dealRuns(
    std::span<const PlanRun> runs, uint64_t bytes, size_t parts, uint64_t piece, uint64_t least) {
    std::vector<PlanRun> pieces;
    for (const PlanRun& run : runs) {
        if (run.size <= piece) {
            pieces.push_back(run);
            continue;
        }
        for (uint64_t i = 0; i < run.count; ++i) {
            cut(slice(run, i, 1), piece, pieces);
        }
    }
    const uint64_t wanted = std::clamp<uint64_t>(bytes / least, 1, parts);
    const uint64_t share = (bytes + wanted - 1) / wanted;
    std::vector<std::vector<PlanRun>> out(1);
    uint64_t room = share;
    for (PlanRun run : pieces) {
        while (run.count != 0) {
            if (room == 0) {
                out.emplace_back();
                room = share;
            }
            // The last segment of a part may reach beyond its share.
            const uint64_t fit = run.size == 0 ? run.count : (room + run.size - 1) / run.size;
            const uint64_t count = std::min(run.count, fit);
            out.back().push_back(slice(run, 0, count));
            room -= std::min(room, count * run.size);
            run = slice(run, count, run.count - count);
        }
    }
    return out;
}

Result<std::shared_ptr<UcxWorkers>> UcxWorkers::create(const UcxLibrary& ucx,
                                                       const UcxOptions& options) {
    Result<std::unique_ptr<UcxContext>> context = UcxContext::create(ucx, options);
    if (!context.ok()) {
        return context.status();
    }
    std::shared_ptr<UcxWorkers> made(new UcxWorkers(std::move(context).value()));
    for (unsigned i = 0; i < std::max(options.workers, 1U); ++i) {
        Result<std::unique_ptr<UcxWorker>> worker = UcxWorker::create(made->context_);
        if (!worker.ok()) {
            return worker.status();
        }
        append(made->addresses_, worker.value()->address());
        made->workers_.push_back(std::move(worker).value());
    }
    return made;
}

Status UcxWorkers::addPeer(const std::string& key, std::string_view addresses) {
    const std::vector<std::string> theirs = split(addresses);
    if (theirs.empty()) {
        return Status::invalidParam("UCX: what the peer gave are no worker addresses");
    }
    for (size_t i = 0; i < workers_.size(); ++i) {
        workers_[i]->addPeer(key, theirs[i % theirs.size()]);
    }
    return {};
}

void UcxWorkers::removePeer(const std::string& key) {
    for (const auto& worker : workers_) {
        worker->losePeer(key, Status::disconnected("the agent has been removed"), true);
    }
}

void UcxWorkers::losePeer(const std::string& key, const Status& why) {
    for (const auto& worker : workers_) {
        worker->losePeer(key, why, false);
    }
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
        UcxJob job;
        job.read = work.read;
        job.peer = work.peer;
        job.runs = work.parts[i];
        job.keys = work.keys;
        job.completion = all->completion.get();
        job.done = [all](Status status) { all->end(std::move(status)); };
        workers_[(first + i) % workers_.size()]->run(std::move(job));
    }
}

void UcxWorkers::wake() {
    for (const auto& worker : workers_) {
        worker->wake();
    }
}

}  // namespace nixl::ucx
