// AgentImpl: what it counts and holds, for those who watch it.
#include <algorithm>
#include <cstdlib>

#include <unistd.h>

#include "agent/agent_impl.h"
#include "agent/dump_signal.h"
#include "agent/services.h"
#include "backend/names.h"
#include "backend/plugins.h"
#include "base/log.h"
#include "telemetry/directory.h"

namespace nixl::detail {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostPending = 16;
constexpr std::chrono::milliseconds kInterval{1000};

// What a variable of the environment says; empty: nothing.
Result<std::optional<bool>> flagOf(const std::string& agent, const char* variable) {
    const char* const word = std::getenv(variable);
    if (word == nullptr || *word == '\0') {
        return std::optional<bool>();
    }
    if (const std::optional<bool> flag = backend::readFlag(word)) {
        return flag;
    }
    return Status::invalidParam("agent \"" + agent + "\": " + variable + "=\"" + word + "\" " +
                                backend::kFlagMust);
}

std::string hexadecimal(const peer::Key& key) {
    std::string text;
    for (const uint8_t byte : key) {
        constexpr char kDigits[] = "0123456789abcdef";
        text += kDigits[byte >> 4];
        text += kDigits[byte & 15];
    }
    return text;
}

// Parameters of an exporter from the environment: NIXL_TELEMETRY_NAME_PARAMETER.
std::map<std::string, std::string> exporterParameters(const PluginTable& table) {
    std::map<std::string, std::string> given;
    for (size_t i = 0; i < table.parameterCount; ++i) {
        const std::string variable = "NIXL_TELEMETRY_" + backend::upperCase(table.name) + "_" +
                                     backend::upperCase(table.parameters[i].name);
        const char* const value = std::getenv(variable.c_str());
        if (value != nullptr && *value != '\0') {
            given[table.parameters[i].name] = value;
        }
    }
    return given;
}

Result<std::unique_ptr<telemetry::Exporter>> makeExporter(const std::string& name,
                                                          telemetry::Exporter::Setup setup) {
    Result<const PluginTable*> table =
        backend::PluginRegistry::instance().find(name, PluginKind::TELEMETRY_EXPORTER);
    if (!table.ok()) {
        return table.status();
    }
    Result<Parameters> parameters = backend::validateParameters(
        *table.value(), exporterParameters(*table.value()),
        [](const std::string& text) { base::log(LogLevel::WARN, text); });
    if (!parameters.ok()) {
        return parameters.status();
    }
    setup.parameters = parameters.value().values();
    return telemetry::Exporter::create(table.value()->name, *table.value()->exporter,
                                       std::move(setup));
}

std::vector<std::string> wordsOf(const char* text) {
    std::vector<std::string> words;
    std::string word;
    for (const char* c = text; c != nullptr; ++c) {
        if (*c == ',' || *c == ' ' || *c == '\0') {
            if (!word.empty()) {
                words.push_back(std::move(word));
            }
            word.clear();
            if (*c == '\0') {
                break;
            }
        } else {
            word += *c;
        }
    }
    return words;
}

}  // namespace

std::map<std::string, uint64_t> AgentImpl::stats() const {
    std::map<std::string, uint64_t> out;
    out["posts"] = 0;
    out["bytes"] = 0;
    for (const TransferCounts& counts : shared_->series().read()) {
        out["posts"] += counts.posts;
        out["bytes"] += counts.bytes;
    }
    out["failures"] = shared_->failures.load();
    out["late_ends"] = shared_->lateEnds.load();
    out["regions"] = shared_->regions().size();
    out["wait_spins"] = shared_->busyPoll.spins();
    out["wait_sleeps"] = shared_->busyPoll.sleeps();
    out["reactor_spins"] = reactor_->busyPoll().spins();
    out["reactor_sleeps"] = reactor_->busyPoll().sleeps();
    if (const peer::Engine* const sessions = engine(); sessions != nullptr) {
        out.merge(sessions->stats());
    }
    if (const exchange_tcp::TcpExchange* const direct = exchange(); direct != nullptr) {
        out.merge(direct->stats());
    }
    if (central_ != nullptr) {
        out.merge(central_->stats());
    }
    for (const Loaded& loaded : loadedBackends()) {
        const auto* const services =
            static_cast<const agent::BackendServices*>(loaded->services.get());
        for (const auto& [name, value] : services->counters()) {
            out[loaded->name + "." + name] = value;
        }
    }
    return out;
}

Status AgentImpl::readTelemetrySettings() {
    Result<std::optional<bool>> wanted = flagOf(self().name, "NIXL_TELEMETRY_ENABLE");
    if (!wanted.ok()) {
        return wanted.status();
    }
    figures_ = wanted.value().value_or(true);
    publishes_ = wanted.value().value_or(config_.captureTelemetry);
    Result<std::optional<bool>> dumps = flagOf(self().name, "NIXL_DUMP_ON_SIGUSR2");
    if (!dumps.ok()) {
        return dumps.status();
    }
    if (dumps.value().value_or(config_.dumpOnSigusr2)) {
        if (const Status done = agent::dumpOnSignal(weak_from_this()); !done.ok()) {
            base::log(LogLevel::WARN, "agent \"" + self().name + "\": " + done.message());
        }
    }
    telemetryInterval_ = kInterval;
    if (const char* const text = std::getenv("NIXL_TELEMETRY_RUN_INTERVAL");
        text != nullptr && *text != '\0') {
        char* end = nullptr;
        const long value = std::strtol(text, &end, 10);
        if (*end != '\0' || value < 10 || value > 60'000) {
            return Status::invalidParam("agent \"" + self().name +
                                        "\": NIXL_TELEMETRY_RUN_INTERVAL=\"" + text +
                                        "\" must be milliseconds from 10 to 60000");
        }
        telemetryInterval_ = std::chrono::milliseconds(value);
    }
    return {};
}

// Whatever goes wrong here is one warning: an agent works as well without.
void AgentImpl::startTelemetry() {
    if (!publishes_) {
        return;
    }
    const auto warn = [this](const Status& status) {
        base::log(LogLevel::WARN, "agent \"" + self().name + "\": " + status.message());
    };
    telemetry::Publisher::Plan plan;
    plan.agent = self().name;
    plan.id = hexadecimal(self().incarnation);
    plan.directory = telemetry::defaultDirectory();
    plan.interval = telemetryInterval_;
    if (const Status usable = telemetry::openDirectory(plan.directory); !usable.ok()) {
        warn(usable);
        return;
    }
    std::vector<std::unique_ptr<telemetry::Exporter>> exporters;
    for (const std::string& name : wordsOf(std::getenv("NIXL_TELEMETRY_EXPORTER"))) {
        auto made = makeExporter(name, {plan.agent, plan.id, plan.directory, {}});
        if (made.ok()) {
            exporters.push_back(std::move(made).value());
        } else {
            warn(made.status());
        }
    }
    plan.read = [weak = weak_from_this()]() -> std::optional<AgentTelemetry> {
        const std::shared_ptr<AgentImpl> agent = weak.lock();
        if (agent == nullptr) {
            return std::nullopt;
        }
        const agent::CallGate::Call inside(agent->gate_);
        if (agent->telemetryOver_.load()) {
            return std::nullopt;  // a publisher that was left behind
        }
        return agent->telemetry();
    };
    auto started = telemetry::Publisher::start(std::move(plan), std::move(exporters));
    if (started.ok()) {
        publisher_ = std::move(started).value();
    } else {
        warn(started.status());
    }
}

AgentTelemetry AgentImpl::telemetry() {
    AgentTelemetry out;
    out.agent = self().name;
    out.incarnation = hexadecimal(self().incarnation);
    out.age = Clock::now() - created_;
    out.transfers = shared_->series().read();
    for (const auto& [type, total] : shared_->regions().totals()) {
        out.registered[type] = {total.regions, total.bytes};
    }
    {
        ReadLock lock(peersMutex_);
        out.peers = peers_.size();
    }
    out.prepared = transfers_.size();
    out.counters = stats();
    out.pending = pendingTransfers(kMostPending);
    if (publisher_ != nullptr) {
        out.endpoint = publisher_->endpoint();
    }
    return out;
}

// Looks at all there are, seldom: only where a transfer is in progress at all.
std::vector<PendingTransfer> AgentImpl::pendingTransfers(size_t most) {
    std::vector<PendingTransfer> out;
    const auto all = shared_->series().read();
    if (std::ranges::all_of(all, [](const auto& counts) { return counts.inProgress() == 0; })) {
        return out;
    }
    const Clock::time_point now = Clock::now();
    for (const HandleId id : transfers_.ids()) {
        const TransferRef held = transfers_.find(id);
        if (!held || held->word() != agent::TransferState::PENDING) {
            continue;
        }
        const agent::Transfer::View view = held->view(now);
        if (view.word == agent::TransferState::PENDING) {
            out.push_back({id, held->backendName(), std::string(view.lane), view.peer, view.op,
                           view.age, view.bytes, 0});
        }
    }
    std::ranges::sort(out, [](const auto& a, const auto& b) { return a.age > b.age; });
    out.resize(std::min(out.size(), most));
    for (PendingTransfer& one : out) {
        if (const TransferRef held = transfers_.find(one.id); held) {
            one.bytesDone = held->howFar().bytesDone;
        }
    }
    return out;
}

std::string AgentImpl::dumpState() {
    std::string out = "agent " + self().name + " (process " + std::to_string(getpid()) + ")\n";
    if (listenPort_ != 0) {
        out += "  listens on port " + std::to_string(listenPort_) + "\n";
    }
    if (central_ != nullptr) {
        out += "  metadata in " + central_->describe() + "\n";
    }
    for (const Loaded& loaded : loadedBackends()) {
        out += "  backend " + loaded->name + "\n";
    }
    for (const std::string& name : peerNames()) {
        out += "  peer " + name + "\n";
    }
    for (const auto& [type, total] : shared_->regions().totals()) {
        out += std::string("  ") + memTypeName(type) + ": " + std::to_string(total.regions) +
               " regions, " + std::to_string(total.bytes) + " bytes\n";
    }
    out += "  regions " + std::to_string(shared_->regions().size()) + "\n";
    const Clock::time_point now = Clock::now();
    for (const HandleId id : transfers_.ids()) {
        if (const TransferRef held = transfers_.find(id); held) {
            out += "  transfer " + std::to_string(id) + " " + held->line(now) + "\n";
        }
    }
    MutexLock lock(parkedMutex_);
    for (const auto& parked : parked_) {
        out += "  released, its backend still busy: " + parked->line(now) + "\n";
    }
    return out;
}

}  // namespace nixl::detail
