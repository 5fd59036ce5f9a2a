// AgentImpl: metadata through a central store: which one, and the calls for it.
#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "agent/agent_impl.h"
#include "base/log.h"
#include "base/utf8.h"
#include "exchange/framework_store.h"
#include "exchange_etcd/etcd_store.h"
#include "exchange_file/file_store.h"

namespace nixl::detail {

using exchange::Central;
using exchange::MetadataStore;

namespace {

struct Setting {
    const char* name;
    const char* environment;
};
// Of `etcd` in the configuration; the environment serves where that does not say.
constexpr Setting kSettings[] = {{"endpoints", "NIXL_ETCD_ENDPOINTS"},
                                 {"namespace", "NIXL_ETCD_NAMESPACE"},
                                 {"ca", "NIXL_ETCD_CA"},
                                 {"cert", "NIXL_ETCD_CERT"},
                                 {"key", "NIXL_ETCD_KEY"},
                                 {"user", "NIXL_ETCD_USER"},
                                 {"password", "NIXL_ETCD_PASSWORD"},
                                 {"password_file", "NIXL_ETCD_PASSWORD_FILE"},
                                 {"lease_time", "NIXL_ETCD_LEASE_TIME"},
                                 {"timeout", "NIXL_ETCD_TIMEOUT"},
                                 {"watch_timeout", "NIXL_ETCD_WATCH_TIMEOUT"}};
constexpr double kWatchTimeout = 5;  // seconds: the established one
constexpr size_t kMaxSpace = 1024;   // bytes

Result<std::map<std::string, std::string>> readSettings(const AgentConfig& config) {
    std::map<std::string, std::string> out;
    std::string names;
    for (const Setting& setting : kSettings) {
        names += std::string(names.empty() ? "" : " ") + setting.name;
        const auto given = config.etcd.find(setting.name);
        const char* const environment = std::getenv(setting.environment);
        if (given != config.etcd.end()) {
            out[setting.name] = given->second;
        } else if (environment != nullptr && *environment != '\0') {
            out[setting.name] = environment;
        }
    }
    // Which is given in the configuration holds, whichever the environment has.
    if (config.etcd.contains("password")) {
        out.erase("password_file");
    }
    for (const auto& [name, value] : config.etcd) {
        if (std::ranges::none_of(
                kSettings, [&given = name](const Setting& one) { return given == one.name; })) {
            return Status::invalidParam("etcd setting \"" + name + "\" is none of " + names);
        }
    }
    return out;
}

std::string taken(std::map<std::string, std::string>& settings, const char* name) {
    const auto found = settings.find(name);
    std::string value = found == settings.end() ? std::string() : found->second;
    settings.erase(name);
    return value;
}

Status checkSpace(const std::string& space) {
    if (space.size() > kMaxSpace || !base::isUtf8(space) || space.find('\0') != std::string::npos) {
        return Status::invalidParam("etcd namespace of " + std::to_string(space.size()) +
                                    " bytes: must be UTF-8 of at most 1024 bytes without NUL");
    }
    return {};
}

// "/dir" of "/dir", "file:/dir" and "file:///dir".
std::string directoryOf(std::string where) {
    for (const char* prefix : {"file://", "file:"}) {
        if (where.starts_with(prefix)) {
            return where.substr(std::char_traits<char>::length(prefix));
        }
    }
    return where;
}

Result<std::chrono::nanoseconds> readPatience(const std::string& text) {
    double seconds = kWatchTimeout;
    if (!text.empty()) {
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
        if (error != std::errc() || end != text.data() + text.size() ||
            !(seconds >= 0 && seconds <= 1e6)) {
            return Status::invalidParam("etcd setting watch_timeout=\"" + text +
                                        "\": must be a number of seconds between 0 and 1000000");
        }
    }
    return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

}  // namespace

// Null where no store is asked for.
Result<std::shared_ptr<MetadataStore>> AgentImpl::openStore(std::string& space) {
    const std::shared_ptr<MetadataStore> none;
    centralPatience_ = std::chrono::nanoseconds(static_cast<int64_t>(kWatchTimeout * 1e9));
    const int named = (config_.store != nullptr ? 1 : 0) + (config_.metadataStore.empty() ? 0 : 1) +
                      (config_.useEtcd.value_or(false) ? 1 : 0);
    if (named > 1) {
        return Status::invalidParam(
            "more than one central store for metadata is named; give one of metadata_store and "
            "use_etcd=True");
    }
    if (config_.store != nullptr) {
        return std::shared_ptr<MetadataStore>(exchange::makeFrameworkStore(config_.store));
    }
    if (!config_.metadataStore.empty()) {
        Result<std::unique_ptr<MetadataStore>> made =
            exchange_file::makeFileStore(directoryOf(config_.metadataStore));
        if (!made.ok()) {
            return made.status();
        }
        return std::shared_ptr<MetadataStore>(std::move(made).value());
    }
    if (!config_.useEtcd.value_or(true)) {
        return none;
    }
    Result<std::map<std::string, std::string>> read = readSettings(config_);
    if (!read.ok()) {
        return read.status();
    }
    std::map<std::string, std::string> settings = std::move(read).value();
    if (!settings.contains("endpoints")) {
        if (config_.useEtcd.value_or(false)) {
            return Status::invalidParam(
                "use_etcd without endpoints; set NIXL_ETCD_ENDPOINTS, or etcd={\"endpoints\": "
                "...}");
        }
        return none;
    }
    space = taken(settings, "namespace");
    NIXL_RETURN_IF_ERROR(checkSpace(space));
    Result<std::chrono::nanoseconds> patience = readPatience(taken(settings, "watch_timeout"));
    if (!patience.ok()) {
        return patience.status();
    }
    centralPatience_ = patience.value();
    return exchange_etcd::openEtcd(settings);
}

Status AgentImpl::startCentral() {
    std::string space;
    Result<std::shared_ptr<MetadataStore>> store = openStore(space);
    if (!store.ok()) {
        return {store.status().code(),
                "agent \"" + self().name + "\": " + store.status().message()};
    }
    if (store.value() == nullptr) {
        return {};
    }
    Central::Host host;
    host.agent = localAgent();
    host.reactor = reactor_.get();
    host.pool = pool_.get();
    const auto inside = [weak = weak_from_this()](const auto& call) {
        if (const std::shared_ptr<AgentImpl> impl = weak.lock(); impl != nullptr) {
            const agent::CallGate::Call gate(impl->gate_);
            if (impl->usable().ok()) {
                call(*impl);
            }
        }
    };
    host.alive = [inside](const peer::Identity& who) {
        bool alive = false;
        inside([&](const AgentImpl& impl) { alive = impl.isAlive(who); });
        return alive;
    };
    host.changed = [inside](const std::string& name, bool there) {
        inside([&](AgentImpl& impl) { impl.peerChanged(name, there); });
    };
    central_ = std::make_shared<Central>(store.value(), space, std::move(host));
    central_->start();
    central_->publish(nullptr);
    return {};
}

bool AgentImpl::isAlive(const peer::Identity& who) const {
    const peer::Engine* const sessions = engine();
    return peer::findLocalAgent(who.incarnation) != nullptr ||
           (sessions != nullptr && sessions->ready(who));
}

void AgentImpl::onPeerChange(std::function<void(const std::string&, bool)> call) {
    const MutexLock lock(changeMutex_);
    onPeerChange_ = std::move(call);
}

void AgentImpl::peerChanged(const std::string& name, bool there) {
    ++peerChanges_;
    shared_->signal().raise();
    std::function<void(const std::string&, bool)> call;
    {
        const MutexLock lock(changeMutex_);
        call = onPeerChange_;
    }
    if (call) {
        call(name, there);
    }
}

std::string AgentImpl::storeText() const {
    return central_ == nullptr ? std::string() : central_->describe();
}

Status AgentImpl::fetchCentral(const std::string& name, const MetadataPlace& place, Done done) {
    const base::Deadline deadline =
        base::deadlineAfter(place.patience.count() < 0 ? centralPatience_ : place.patience);
    central_->fetch(name, place.label, deadline, fetches_.begin(name, std::move(done)));
    return {};
}

Status AgentImpl::publishCentral(const MetadataPlace& /*place*/, Done done) {
    central_->publish(std::move(done));
    return {};
}

Status AgentImpl::partCentral(const DescriptorList& list,
                              bool connection_info,
                              const Names& backends,
                              const MetadataPlace& place,
                              Done done) {
    Result<std::string> blob = partialMetadata(list, connection_info, backends);
    if (!blob.ok()) {
        return blob.status();
    }
    return central_->publishPart(std::move(blob).value(), place.label, std::move(done));
}

Status AgentImpl::invalidateCentral(const MetadataPlace& /*place*/, const Done& done) {
    central_->invalidate(done);
    return {};
}

}  // namespace nixl::detail
