// See harness.h.
#include "testing/harness.h"

#include <algorithm>
#include <thread>

#include <gtest/gtest.h>

#include "backend/plugins.h"

namespace nixl::testkit {

const PluginTable* tableOf(const Subject& subject) {
    if (subject.table != nullptr) {
        return subject.table;
    }
    const auto found = backend::PluginRegistry::instance().find(subject.plugin);
    if (!found.ok()) {
        ADD_FAILURE() << found.status().message();
        return nullptr;
    }
    return found.value();
}

Side::Side(const Subject& subject,
           const std::string& agent_name,
           const std::map<std::string, std::string>& more_parameters)
    : services_(std::make_unique<TestServices>(agent_name)) {
    const PluginTable* const table = tableOf(subject);
    if (table == nullptr) {
        return;
    }
    std::map<std::string, std::string> parameters = subject.parameters;
    for (const auto& [key, value] : more_parameters) {
        parameters[key] = value;
    }
    auto created = backend::createBackend(*table, parameters, *services_);
    if (!created.ok()) {
        ADD_FAILURE() << created.status().message();
        return;
    }
    backend_ = std::move(created).value().backend;
    if (subject.fault.any()) {
        backend_ = backend::wrapFault(std::move(backend_), subject.fault);
    }
}

PlanPeer Side::peer(bool self) const {
    return {services_->agentName(), services_->incarnation(), self};
}

Registered::Registered(Side& side, std::unique_ptr<Buffer> buffer)
    : buffer_(std::move(buffer)), region_(buffer_->region()) {
    auto memory = side.backend().registerMemory(region_);
    if (!memory.ok()) {
        status_ = memory.status();
        return;
    }
    memory_ = std::move(memory).value();
    id_ = side.services().addRegion(region_);
}

PlanRegion Registered::region() const {
    return {region_.type,     region_.address, region_.size, region_.deviceId,
            region_.metadata, memory_.get(),   id_,          1};
}

Job::Job(OpType op, const PlanRegion& local, const PlanRegion& remote, const PlanPeer& peer)
    : peerName_(peer.name), localRegion_(local), remoteRegion_(remote) {
    plan_.op = op;
    plan_.peer = {peerName_, peer.incarnation, peer.self};
    plan_.localRegions = {&localRegion_, 1};
    plan_.remoteRegions = {&remoteRegion_, 1};
}

Job& Job::add(const Piece& piece) {
    return addRun({.local = piece.local, .remote = piece.remote, .size = piece.size});
}

Job& Job::addRun(const PlanRun& run) {
    PlanRun absolute = run;
    absolute.local += localRegion_.address;
    absolute.remote += remoteRegion_.address;
    absolute.planOffset = plan_.bytes;
    runs_.push_back(absolute);
    plan_.runs = runs_;
    plan_.bytes += run.size * run.count;
    plan_.segments += run.count;
    plan_.descriptors += run.count;
    return *this;
}

Status Job::prepare(Backend& backend) {
    auto transfer = backend.prepareTransfer(plan_);
    if (!transfer.ok()) {
        return transfer.status();
    }
    transfer_ = std::move(transfer).value();
    return {};
}

std::shared_ptr<TestCompletion> Job::post(std::string_view notification, bool notify) {
    auto completion = std::make_shared<TestCompletion>();
    const Status posted = transfer_->post(completion, notification, notify);
    if (!posted.ok()) {
        EXPECT_FALSE(completion->final()) << "a refused post must leave the completion untouched";
        ADD_FAILURE() << "post: " << posted.message();
        return nullptr;
    }
    return completion;
}

void Job::progress(Backend& backend) {
    if (backend.needsProgress()) {
        backend.progress();
    }
    transfer_->help();
}

bool Job::wait(Backend& backend, TestCompletion& completion) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (!completion.final()) {
        if (std::chrono::steady_clock::now() > until) {
            ADD_FAILURE() << "a transfer of " << plan_.bytes << " bytes in " << plan_.segments
                          << " segments is pending after " << kPatience.count() << " ms";
            return false;
        }
        progress(backend);
        completion.waitFor(std::chrono::milliseconds(backend.needsProgress() ? 0 : 1));
    }
    EXPECT_EQ(completion.ends(), 1);
    return true;
}

bool Job::run(Backend& backend) {
    if (!prepared()) {
        const Status status = prepare(backend);
        if (!status.ok()) {
            ADD_FAILURE() << "prepare: " << status.message();
            return false;
        }
    }
    const auto completion = post();
    if (!completion || !wait(backend, *completion)) {
        return false;
    }
    EXPECT_EQ(completion->state(), XferState::DONE) << completion->status().message();
    return completion->state() == XferState::DONE;
}

Side* Bench::side() {
    if (!side_) {
        side_ = newSide("conformance");
    }
    return side_ && *side_ ? side_.get() : nullptr;
}

std::unique_ptr<Side> Bench::newSide(const std::string& agent_name,
                                     const std::map<std::string, std::string>& more) {
    auto made = std::make_unique<Side>(subject_, agent_name, more);
    return *made ? std::move(made) : nullptr;
}

std::unique_ptr<Registered> Bench::local(Side& side, uint64_t size) {
    auto made = std::make_unique<Registered>(side, subject_.local(size));
    EXPECT_TRUE(made->ok()) << "register " << size << " bytes: " << made->status().message();
    return made;
}

std::unique_ptr<Registered> Bench::remote(Side& side, uint64_t size) {
    auto made = std::make_unique<Registered>(side, subject_.remote(size));
    EXPECT_TRUE(made->ok()) << "register " << size << " bytes: " << made->status().message();
    return made;
}

uint64_t Bench::rounded(uint64_t size) const {
    const uint64_t step = subject_.granularity;
    return (size + step - 1) / step * step;
}

const PluginTable* Bench::table() {
    return tableOf(subject_);
}

}  // namespace nixl::testkit
