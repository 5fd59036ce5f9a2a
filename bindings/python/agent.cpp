// include/nixl/agent.h for Python: nixlAgentConfig and the class nixlAgent. Its transfers are in
// agent_transfer.cpp, metadata and notifications in agent_metadata.cpp.
#include <condition_variable>
#include <mutex>
#include <thread>

#include <nanobind/stl/chrono.h>
#include <nanobind/stl/optional.h>

#include <nixl/agent.h>

#include "module.h"

namespace nixl::python {
namespace {

constexpr std::chrono::microseconds kEtcdWatchTimeout{5'000'000};  // the established default

// nixlAgentConfig: what the C++ agent takes, and names that are accepted without an effect.
struct RawConfig {
    AgentConfig config;
    nb::object syncMode;
    nb::object store = nb::none();  // nixl.store.FrameworkStore
    uint64_t pthrDelay = 0;
    uint64_t lthrDelay = 100000;
    std::chrono::microseconds etcdWatchTimeout = kEtcdWatchTimeout;
};

template <auto Member>
auto getter() {
    return [](const RawConfig& raw) { return raw.config.*Member; };
}

template <auto Member, typename T>
auto setter() {
    return [](RawConfig& raw, T value) { raw.config.*Member = std::move(value); };
}

#define NIXL_CONFIG_FIELD(type, python_name, member)              \
    type.def_prop_rw(python_name, getter<&AgentConfig::member>(), \
                     setter<&AgentConfig::member, decltype(AgentConfig::member)>())

void initConfig(RawConfig* self,
                bool prog_thread,
                bool listen_thread,
                uint16_t port,
                nb::object sync,
                unsigned workers,
                uint64_t pthr_delay,
                uint64_t lthr_delay,
                bool telemetry,
                std::chrono::microseconds etcd_timeout) {
    new (self) RawConfig;
    self->config.enableProgThread = prog_thread;
    self->config.enableListenThread = listen_thread;
    self->config.listenPort = port;
    self->config.numThreads = workers;
    self->config.captureTelemetry = telemetry;
    self->syncMode = std::move(sync);
    self->pthrDelay = pthr_delay;
    self->lthrDelay = lthr_delay;
    self->etcdWatchTimeout = etcd_timeout;
}

void bindConfig(nb::module_& module) {
    nb::class_<RawConfig> type(module, "nixlAgentConfig", "Options of a raw agent.");
    type.def("__init__", &initConfig, nb::arg("useProgThread") = false,
             nb::arg("useListenThread") = false, nb::arg("listenPort") = 8888,
             nb::arg("syncMode") = module.attr("NIXL_THREAD_SYNC_NONE"), nb::arg("numWorkers") = 0,
             nb::arg("pthrDelay") = 0, nb::arg("lthrDelay") = 100000,
             nb::arg("captureTelemetry") = false, nb::arg("etcdWatchTimeout") = kEtcdWatchTimeout);
    type.def_rw("syncMode", &RawConfig::syncMode)
        .def_rw("pthrDelay", &RawConfig::pthrDelay)
        .def_rw("lthrDelay", &RawConfig::lthrDelay)
        .def_rw("etcdWatchTimeout", &RawConfig::etcdWatchTimeout);
    NIXL_CONFIG_FIELD(type, "useProgThread", enableProgThread);
    NIXL_CONFIG_FIELD(type, "useListenThread", enableListenThread);
    NIXL_CONFIG_FIELD(type, "listenPort", listenPort);
    NIXL_CONFIG_FIELD(type, "listenHost", listenHost);
    NIXL_CONFIG_FIELD(type, "captureTelemetry", captureTelemetry);
    NIXL_CONFIG_FIELD(type, "numWorkers", numThreads);
    NIXL_CONFIG_FIELD(type, "backends", backends);
    NIXL_CONFIG_FIELD(type, "backendParams", backendParams);
    NIXL_CONFIG_FIELD(type, "useEtcd", useEtcd);
    type.def_prop_rw(
        "authKey", [](const RawConfig& raw) { return toBytes(raw.config.authKey); },
        [](RawConfig& raw, Text key) { raw.config.authKey = key.str(); });
    NIXL_CONFIG_FIELD(type, "authKeyFile", authKeyFile);
    NIXL_CONFIG_FIELD(type, "peerTimeout", peerTimeout);
    NIXL_CONFIG_FIELD(type, "xferTimeout", xferTimeout);
    NIXL_CONFIG_FIELD(type, "lanes", lanes);
    NIXL_CONFIG_FIELD(type, "busyPollMicroseconds", busyPollMicroseconds);
    NIXL_CONFIG_FIELD(type, "socketDir", socketDir);
    NIXL_CONFIG_FIELD(type, "raiseOnError", raiseOnError);
    NIXL_CONFIG_FIELD(type, "dumpOnSigusr2", dumpOnSigusr2);
    NIXL_CONFIG_FIELD(type, "metadataStore", metadataStore);
    NIXL_CONFIG_FIELD(type, "etcd", etcd);
    type.def_prop_rw(
        "store", [](const RawConfig& raw) { return raw.store; },
        [](RawConfig& raw, nb::object store) {
            raw.config.store = store.is_none() ? nullptr : makePythonStore(store);
            raw.store = std::move(store);
        },
        nb::arg("store").none());
}

nb::list typeNames(const std::vector<MemType>& types) {
    nb::list names;
    for (const MemType type : types) {
        names.append(typeName(type));
    }
    return names;
}

nb::object pluginParameters(RawAgent& self, Text plugin) {
    Agent& agent = self.get();
    std::vector<PluginParameter> parameters;
    std::vector<MemType> types;
    {
        const GilRelease release;
        parameters = agent.pluginParameters(plugin.str());
        types = agent.pluginMemoryTypes(plugin.str());
    }
    nb::dict defaults;
    for (const PluginParameter& parameter : parameters) {
        defaults[nb::str(parameter.name.c_str())] = parameter.defaultValue;
    }
    return nb::make_tuple(defaults, typeNames(types));
}

nb::object backendParameters(RawAgent& self, nb::handle backend) {
    const std::string name = backendName(backend);
    return nb::make_tuple(toDict(self.get().backendParameters(name)),
                          typeNames(self.get().backendCapabilities(name).memoryTypes));
}

nb::dict capabilities(RawAgent& self, nb::handle backend) {
    const BackendCapabilities told = self.get().backendCapabilities(backendName(backend));
    nb::dict out;
    out["local"] = told.local;
    out["remote"] = told.remote;
    out["notifications"] = told.notifications;
    out["memory_types"] = typeNames(told.memoryTypes);
    return out;
}

nb::object queryMemory(RawAgent& self, const RegList& descs, nb::handle backend) {
    const std::string name = backendName(backend);
    Agent& agent = self.get();
    std::vector<Agent::QueryResult> results;
    const RegistrationList copy = descs.list;
    {
        const GilRelease release;
        results = agent.queryMemory(copy, name);
    }
    nb::list out;
    std::vector<std::pair<std::string, nb::str>> keys;  // of the one before, mostly the same
    for (const Agent::QueryResult& result : results) {
        if (!result.has_value()) {
            out.append(nb::none());
            continue;
        }
        nb::dict one;
        size_t at = 0;
        for (const auto& [key, value] : *result) {
            if (at == keys.size() || keys[at].first != key) {
                keys.erase(keys.begin() + static_cast<ptrdiff_t>(at), keys.end());
                keys.emplace_back(key, nb::str(key.data(), key.size()));
            }
            one[keys[at++].second] = nb::str(value.data(), value.size());
        }
        out.append(std::move(one));
    }
    return out;
}

nb::object listStorage(RawAgent& self, nb::handle backend, nb::handle prefix, size_t limit) {
    const std::string name = backendName(backend);
    const std::string begin = readName(prefix, "prefix");
    Agent& agent = self.get();
    std::vector<StorageEntry> entries;
    {
        const GilRelease release;
        entries = agent.listStorage(name, begin, limit);
    }
    nb::dict out;
    for (const StorageEntry& entry : entries) {
        out[toName(entry.name)] = toDict(entry.attributes);
    }
    return out;
}

// What stands in the way of each name that is still there.
nb::dict removeMany(RawAgent& self, nb::handle backend, const nb::list& given) {
    const std::string where = backendName(backend);
    std::vector<std::string> names;
    for (const nb::handle name : given) {
        names.push_back(readName(name, "name " + std::to_string(names.size())));
    }
    Agent& agent = self.get();
    std::vector<Status> ends;
    {
        const GilRelease release;
        ends = agent.removeStorage(where, names);
    }
    nb::dict out;
    for (size_t i = 0; i < ends.size(); ++i) {
        if (!ends[i].ok()) {
            out[toName(names[i])] = makeError(Error(ends[i], {agent.name(), {}, where}));
        }
    }
    return out;
}

void bindBackends(nb::class_<RawAgent>& agent) {
    agent.def("getAvailPlugins", [](RawAgent& self) { return self.get().availablePlugins(); })
        .def("getPluginParams", &pluginParameters, nb::arg("plugin"))
        .def("getBackendParams", &backendParameters, nb::arg("backend"))
        .def(
            "createBackend",
            [](RawAgent& self, Text plugin, const BackendParams& params) {
                Agent& live = self.get();
                std::string name;
                {
                    const GilRelease release;
                    name = live.createBackend(plugin.str(), params);
                }
                return backendHandle(name);
            },
            nb::arg("plugin"), nb::arg("params") = nb::dict())
        .def("_backends",
             [](RawAgent& self) {
                 nb::dict out;
                 for (const std::string& name : self.get().backends()) {
                     out[nb::str(name.c_str())] = backendHandle(name);
                 }
                 return out;
             })
        .def("_capabilities", &capabilities)
        .def("queryMem", &queryMemory, nb::arg("descs").lock(), nb::arg("backend"))
        .def("_listStorage", &listStorage)
        .def("_removeMany", &removeMany)
        .def("_removeStorage", [](RawAgent& self, nb::handle backend, nb::handle given) {
            const std::string where = backendName(backend);
            const std::string name = readName(given, "name");
            Agent& live = self.get();
            const GilRelease release;
            live.removeStorage(where, name);
        });
}

void bindMemoryCalls(nb::class_<RawAgent>& agent) {
    agent
        .def(
            "registerMem",
            [](RawAgent& self, const RegList& descs, nb::handle backends) {
                const std::vector<std::string> names = backendNames(backends);
                Agent& live = self.get();
                const RegistrationList copy = descs.list;  // others may change the list meanwhile
                const GilRelease release;
                live.registerMemory(copy, names);
                return StatusValue::SUCCESS;
            },
            nb::arg("descs").lock(), nb::arg("backends").none() = nb::make_tuple())
        .def(
            "deregisterMem",
            [](RawAgent& self, const RegList& descs, nb::handle backends) {
                const std::vector<std::string> names = backendNames(backends);
                Agent& live = self.get();
                const RegistrationList copy = descs.list;  // others may change the list meanwhile
                const GilRelease release;
                live.deregisterMemory(copy, names);
                return StatusValue::SUCCESS;
            },
            nb::arg("descs").lock(), nb::arg("backends").none() = nb::make_tuple())
        .def(
            "prepMemView",
            [](RawAgent& self, nb::handle, nb::handle) -> uint64_t {
                throw Error(Status::notSupported(
                    "memory views are for transfers that a GPU starts itself; no backend of agent "
                    "\"" +
                    self.get().name() + "\" can make one"));
            },
            nb::arg("dlist"), nb::arg("backends").none() = nb::make_tuple())
        .def(
            "releaseMemView",
            [](RawAgent& self, uint64_t view) {
                throw Error(Status::invalidParam("memory view " + std::to_string(view) +
                                                 " is none of agent \"" + self.get().name() +
                                                 "\""));
            },
            nb::arg("mvh"));
}

// Every open agent of the process, for the end of the interpreter.
struct OpenAgents {
    std::mutex mutex;
    std::vector<std::weak_ptr<LiveAgent>> agents;
};

OpenAgents& openAgents() {
    static auto* open = new OpenAgents;  // never destroyed: agents may outlive the module
    return *open;
}

void rememberAgent(const LiveAgentPtr& agent) {
    OpenAgents& open = openAgents();
    const std::lock_guard lock(open.mutex);
    std::erase_if(open.agents, [](const auto& weak) { return weak.expired(); });
    open.agents.push_back(agent);
}

// Closes all agents side by side, each on its own thread; whoever is not done in time is left.
void closeAll(double seconds) {
    struct Shared {
        std::mutex mutex;
        std::condition_variable ended;
        size_t running = 0;
    };
    const GilRelease release;
    const auto shared = std::make_shared<Shared>();
    auto* live = new std::vector<LiveAgentPtr>;
    {
        OpenAgents& open = openAgents();
        const std::lock_guard lock(open.mutex);
        for (const std::weak_ptr<LiveAgent>& weak : open.agents) {
            if (LiveAgentPtr agent = weak.lock(); agent != nullptr) {
                live->push_back(std::move(agent));
            }
        }
    }
    std::unique_lock lock(shared->mutex);
    shared->running = live->size();
    for (const LiveAgentPtr& agent : *live) {
        std::thread([shared, raw = agent.get()] {
            raw->close();
            const std::lock_guard inner(shared->mutex);
            --shared->running;
            shared->ended.notify_all();
        }).detach();
    }
    shared->ended.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return shared->running == 0; });
    // `live` is kept for good: the process ends, and a thread that is late still uses its agent.
}

// Agent::close() where the library has it.
template <typename T>
void closeAgent(T& agent) {
    if constexpr (requires { agent.close(); }) {
        agent.close();
    }
}

}  // namespace

LiveAgent::LiveAgent(std::string name, AgentConfig config)
    : raisesErrors_(config.raiseOnError), agent_(std::move(name), std::move(config)) {}

void LiveAgent::throwClosed() const {
    throw Error(Status::notAllowed("agent \"" + agent_.name() + "\" has been closed"));
}

void LiveAgent::close() noexcept {
    if (!closed_.exchange(true)) {
        closeAgent(agent_);
    }
}

RawAgent::RawAgent(std::string name, AgentConfig config)
    // The last user may be any handle; ending an agent may take a while, so without the GIL.
    : live(new LiveAgent(std::move(name), std::move(config)), [](LiveAgent* agent) {
          const GilRelease release;
          delete agent;
      }) {
    rememberAgent(live);
}

nb::dict toDict(const std::map<std::string, std::string>& values) {
    nb::dict out;
    for (const auto& [key, value] : values) {
        out[nb::str(key.data(), key.size())] = value;
    }
    return out;
}

void bindAgent(nb::module_& module) {
    bindConfig(module);
    nb::class_<RawAgent> agent(module, "nixlAgent", nb::is_weak_referenceable(),
                               "The raw agent: ids and statuses.");
    agent.def(
        "__init__",
        [](RawAgent* self, Text name, const RawConfig& config) {
            std::string text = name.str();
            AgentConfig copy = config.config;
            if (config.etcdWatchTimeout != kEtcdWatchTimeout) {
                const double seconds =
                    std::chrono::duration<double>(config.etcdWatchTimeout).count();
                copy.etcd.try_emplace("watch_timeout", std::to_string(seconds));
            }
            const GilRelease release;
            new (self) RawAgent(std::move(text), std::move(copy));
        },
        nb::arg("name"), nb::arg("config"));
    agent.def_prop_ro("_name", [](RawAgent& self) { return self.get().name(); })
        .def_prop_ro("_closed", [](const RawAgent& self) { return self.live->closed(); })
        .def("_close", [](RawAgent& self) {
            const LiveAgentPtr live = self.live;
            const GilRelease release;
            live->close();
        });
    bindBackends(agent);
    bindMemoryCalls(agent);
    bindAgentTransfers(agent);
    bindAgentMetadata(agent);
    module.def("_closeAll", &closeAll, nb::arg("seconds"));
}

}  // namespace nixl::python
