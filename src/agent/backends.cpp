// AgentImpl: creating backends and choosing among them.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include <strings.h>

#include "agent/agent_impl.h"
#include "agent/services.h"
#include "backend/names.h"
#include "backend/plugins.h"
#include "backend/wrappers.h"
#include "base/log.h"

namespace nixl::detail {

using agent::BackendServices;
using agent::LoadedBackend;

Result<std::string> AgentImpl::createBackend(const std::string& plugin,
                                             const BackendParams& params) {
    auto& registry = backend::PluginRegistry::instance();
    Result<const PluginTable*> table = registry.find(plugin);
    if (!table.ok()) {
        return table.status();
    }
    const PluginTable& found = *table.value();
    if (loaded(found.name).ok()) {
        return Status::notAllowed("agent \"" + self().name + "\" has a backend " + found.name +
                                  " already");
    }
    auto made = std::make_shared<LoadedBackend>();
    made->name = found.name;
    BackendServices::Core core;
    core.shared = shared_;
    core.reactor = reactor_.get();
    core.pool = pool_.get();
    core.progressThread = config_.enableProgThread;
    const char* const lanes = std::getenv("NIXL_LANES");
    core.wantedLanes = config_.lanes.empty() && lanes != nullptr ? lanes : config_.lanes;
    core.lanes = [this](PluginServices& services, const LaneBackendSpec& spec) {
        return projectLanes(services, spec);
    };
    core.notify = [this](const peer::Identity& who, std::string message,
                         std::function<void(Status)> done) {
        notify(who, std::move(message), std::move(done));
    };
    core.connect = [this](const peer::Identity& who, std::function<void(Status)> done) {
        openSession(who, std::move(done));
    };
    core.pollers = [this] { return pollers(); };
    made->services = std::make_unique<BackendServices>(found.name, std::move(core));
    BackendParams given = params;
    const auto* const last = found.parameters + found.parameterCount;
    if (config_.numThreads != 0 &&
        std::any_of(found.parameters, last, [](const ParameterSpec& parameter) {
            return std::string_view(parameter.name) == "num_threads";
        })) {
        given.try_emplace("num_threads", std::to_string(config_.numThreads));
    }
    Result<backend::CreatedBackend> created = backend::createBackend(found, given, *made->services);
    if (!created.ok()) {
        return created.status();
    }
    made->backend = std::move(created.value().backend);
    made->parameters = std::move(created.value().parameters);
    if (made->backend->needsProgress() && progress_ != nullptr) {
        progress_->wake();
    }
    {
        WriteLock lock(backendsMutex_);
        for (const Loaded& other : backends_) {
            if (other->name == made->name) {
                return Status::notAllowed("agent \"" + self().name + "\" has a backend " +
                                          made->name + " already");
            }
        }
        made->index = static_cast<unsigned>(backends_.size());
        backends_.push_back(made);
    }
    if (made->backend->supportsRemote()) {
        shared_->regions().changedAltogether();
        metadataChanged();
    }
    if (base::logs(LogLevel::DEBUG)) {
        base::log(LogLevel::DEBUG, "Backend " + made->name + " was instantiated");
    }
    return made->name;
}

// Whether nobody has ever heard of a plugin, as opposed to one that cannot be loaded, or looked for
// now: without a descriptor the folders show nothing.
static bool isUnknown(const std::string& plugin) {
    const auto table = backend::PluginRegistry::instance().find(plugin);
    if (table.ok() || table.status().code() != ErrorCode::NOT_FOUND) {
        return false;
    }
    const std::vector<std::string> known = backend::PluginRegistry::instance().names();
    return std::none_of(known.begin(), known.end(),
                        [&](const std::string& name) { return backend::sameName(name, plugin); });
}

void AgentImpl::warnOfUnknownParams() const {
    for (const auto& [name, values] : config_.backendParams) {
        if (!isUnknown(name)) {
            continue;
        }
        // It may be an alias, which only loading tells.
        if (auto table = backend::PluginRegistry::instance().find(name); !table.ok()) {
            base::log(LogLevel::WARN, "agent \"" + self().name + "\": options of a backend \"" +
                                          name + "\" have no use: " + table.status().message());
        }
    }
}

Status AgentImpl::createConfigured() {
    warnOfUnknownParams();
    Status first;
    for (const std::string& wanted : config_.backends) {
        BackendParams params;
        for (const auto& [name, values] : config_.backendParams) {
            if (strcasecmp(name.c_str(), wanted.c_str()) == 0) {
                params = values;
            }
        }
        Result<std::string> made = createBackend(wanted, params);
        if (made.ok()) {
            continue;
        }
        if (made.status().code() == ErrorCode::INVALID_PARAM) {
            return made.status();  // an ill-typed parameter is never passed over
        }
        base::log(LogLevel::WARN, "agent \"" + self().name + "\": backend " + wanted +
                                      " was not created: " + made.status().message());
        // Existing code goes on without backends it misspelt, and creates others later.
        if (first.ok() && !isUnknown(wanted)) {
            first = made.status();
        }
    }
    ReadLock lock(backendsMutex_);
    return backends_.empty() ? first : Status();
}

AgentImpl::LoadedList AgentImpl::loadedBackends() const {
    ReadLock lock(backendsMutex_);
    return backends_;
}

Result<AgentImpl::Loaded> AgentImpl::loaded(const std::string& name) const {
    std::string known;
    for (const Loaded& one : loadedBackends()) {
        if (strcasecmp(one->name.c_str(), name.c_str()) == 0) {
            return one;
        }
        known += (known.empty() ? "" : " ") + one->name;
    }
    // An alias counts as the name it stands for.
    Result<const PluginTable*> table = backend::PluginRegistry::instance().find(name);
    if (table.ok() && strcasecmp(table.value()->name, name.c_str()) != 0) {
        return loaded(table.value()->name);
    }
    return Status::notFound("agent \"" + self().name + "\" has no backend \"" + name +
                            "\"; it has " + (known.empty() ? "none" : known));
}

Result<AgentImpl::LoadedList> AgentImpl::choose(const Names& names) const {
    if (names.empty()) {
        return loadedBackends();
    }
    LoadedList chosen;
    for (const std::string& name : names) {
        Result<Loaded> one = loaded(name);
        if (!one.ok()) {
            return one.status();
        }
        chosen.push_back(one.value());
    }
    return chosen;
}

}  // namespace nixl::detail
