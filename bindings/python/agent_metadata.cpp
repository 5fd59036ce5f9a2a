// The class nixlAgent, third part: metadata, notifications, what it tells about itself.
#include <chrono>
#include <future>

#include "module.h"

namespace nixl::python {
namespace {

nb::dict takeNotifications(RawAgent& self, nb::dict into, nb::handle /*backends*/) {
    for (const Notification& notification : self.get().takeNotifications()) {
        const nb::str from(notification.from.data(), notification.from.size());
        nb::object messages = into.attr("get")(from);
        if (messages.is_none()) {
            messages = nb::list();
            into[from] = messages;
        }
        messages.attr("append")(toBytes(notification.message));
    }
    return into;
}

void sendNotification(RawAgent& self, Text peer, Text message, nb::handle backends) {
    const std::vector<std::string> names = backendNames(backends);
    Agent& agent = self.get();
    const GilRelease release;
    agent.sendNotification(peer.str(), message.view, names.empty() ? std::string() : names.front());
}

MetadataPlace placeOf(Text host, uint16_t port, Text label, nb::handle timeout) {
    MetadataPlace place;
    place.host = host.str();
    place.port = port;
    place.label = label.str();
    place.patience = readTimeout(timeout);
    return place;
}

// Waits for the end of an exchange where a time was given for it; else it goes on by itself.
void awaitExchange(std::future<void> end, nb::handle timeout) {
    if (timeout.is_none()) {
        return;
    }
    waitWithoutGil([&] {
        constexpr std::chrono::milliseconds kBetweenSignals{20};
        while (end.wait_for(kBetweenSignals) != std::future_status::ready) {
            if (interrupted()) {
                return true;
            }
        }
        end.get();
        return true;
    });
}

// What `call` begins, without the GIL.
template <typename Call>
void exchange(nb::handle timeout, const Call& call) {
    std::future<void> end;
    {
        const GilRelease release;
        end = call();
    }
    awaitExchange(std::move(end), timeout);
}

// Metadata through a listener or a central store.
void bindExchange(nb::class_<RawAgent>& agent) {
    agent
        .def(
            "sendLocalMD",
            [](RawAgent& self, Text host, uint16_t port, nb::handle timeout) {
                Agent& live = self.get();
                const MetadataPlace place = placeOf(host, port, {}, timeout);
                exchange(timeout, [&] { return live.sendLocalMetadata(place); });
            },
            nb::arg("ip_addr") = "", nb::arg("port") = 0, nb::arg("timeout").none() = nb::none())
        .def(
            "sendLocalPartialMD",
            [](RawAgent& self, const RegList& descs, bool connection, nb::handle backends,
               Text host, uint16_t port, Text label, nb::handle timeout) {
                const std::vector<std::string> names = backendNames(backends);
                Agent& live = self.get();
                const MetadataPlace place = placeOf(host, port, label, timeout);
                const DescriptorList list = descs.list.trim();
                exchange(timeout,
                         [&] { return live.sendPartialMetadata(list, connection, place, names); });
            },
            nb::arg("descs").lock(), nb::arg("inc_conn_info") = false,
            nb::arg("backends").none() = nb::make_tuple(), nb::arg("ip_addr") = "",
            nb::arg("port") = 0, nb::arg("label") = "", nb::arg("timeout").none() = nb::none())
        .def(
            "fetchRemoteMD",
            [](RawAgent& self, Text peer, Text host, uint16_t port, Text label,
               nb::handle timeout) {
                Agent& live = self.get();
                const MetadataPlace place = placeOf(host, port, label, timeout);
                const std::string name = peer.str();
                exchange(timeout, [&] { return live.fetchRemoteMetadata(name, place); });
            },
            nb::arg("remote_agent"), nb::arg("ip_addr") = "", nb::arg("port") = 0,
            nb::arg("label") = "", nb::arg("timeout").none() = nb::none())
        .def(
            "invalidateLocalMD",
            [](RawAgent& self, Text host, uint16_t port, nb::handle timeout) {
                Agent& live = self.get();
                const MetadataPlace place = placeOf(host, port, {}, timeout);
                exchange(timeout, [&] { return live.invalidateLocalMetadata(place); });
            },
            nb::arg("ip_addr") = "", nb::arg("port") = 0, nb::arg("timeout").none() = nb::none())
        .def_prop_ro("listenPort", [](RawAgent& self) { return self.get().listenPort(); });
}

void bindPeers(nb::class_<RawAgent>& agent) {
    agent
        .def("getLocalMD",
             [](RawAgent& self) {
                 Agent& live = self.get();
                 std::string blob;
                 {
                     const GilRelease release;
                     blob = live.metadata();
                 }
                 return toBytes(blob);
             })
        .def(
            "getLocalPartialMD",
            [](RawAgent& self, const RegList& descs, bool connection, nb::handle backends) {
                const std::vector<std::string> names = backendNames(backends);
                Agent& live = self.get();
                std::string blob;
                {
                    const DescriptorList list = descs.list.trim();
                    const GilRelease release;
                    blob = live.partialMetadata(list, connection, names);
                }
                return toBytes(blob);
            },
            nb::arg("descs").lock(), nb::arg("inc_conn_info") = false,
            nb::arg("backends").none() = nb::make_tuple())
        .def(
            "loadRemoteMD",
            [](RawAgent& self, Text metadata) {
                Agent& live = self.get();
                std::string name;
                {
                    const GilRelease release;
                    name = live.addPeer(metadata.view);
                }
                return toBytes(name);
            },
            nb::arg("metadata"))
        .def(
            "invalidateRemoteMD",
            [](RawAgent& self, Text peer) {
                Agent& live = self.get();
                const GilRelease release;
                live.removePeer(peer.str());
                return StatusValue::SUCCESS;
            },
            nb::arg("remote_agent"))
        .def(
            "checkRemoteMD",
            [](RawAgent& self, Text peer, const DescriptorList& descs) {
                const bool known =
                    self.get().checkRemoteMetadata(peer.str(), descs.empty() ? nullptr : &descs);
                return known ? StatusValue::SUCCESS : StatusValue::NOT_FOUND;
            },
            nb::arg("remote_agent"), nb::arg("descs").lock())
        .def(
            "makeConnection",
            [](RawAgent& self, Text peer, nb::handle backends) {
                const std::vector<std::string> names = backendNames(backends);
                Agent& live = self.get();
                const GilRelease release;
                live.connect(peer.str(), names);
                return StatusValue::SUCCESS;
            },
            nb::arg("remote_agent"), nb::arg("backends").none() = nb::make_tuple())
        .def("_peers", [](RawAgent& self) { return self.get().peers(); });
}

void bindPeerWaits(nb::class_<RawAgent>& agent) {
    agent
        .def(
            "_waitPeers",
            [](RawAgent& self, size_t count, nb::handle timeout) {
                const auto limit = readTimeout(timeout);
                Agent& live = self.get();
                return waitWithoutGil([&] { return live.waitPeers(count, limit, interrupted); });
            },
            nb::arg("count"), nb::arg("timeout").none() = nb::none())
        .def("_peerChanges", [](RawAgent& self) { return self.get().peerChanges(); })
        .def(
            "_waitPeerChange",
            [](RawAgent& self, uint64_t seen, nb::handle timeout) {
                const auto limit = readTimeout(timeout);
                Agent& live = self.get();
                return waitWithoutGil(
                    [&] { return live.waitPeerChange(seen, limit, interrupted); });
            },
            nb::arg("seen"), nb::arg("timeout").none() = nb::none());
}

void bindNotifications(nb::class_<RawAgent>& agent) {
    agent
        .def("getNotifs", &takeNotifications, nb::arg("notif_map"),
             nb::arg("backends").none() = nb::make_tuple())
        .def(
            "genNotif",
            [](RawAgent& self, Text peer, Text message, nb::handle backends) {
                sendNotification(self, peer, message, backends);
                return StatusValue::SUCCESS;
            },
            nb::arg("remote_agent"), nb::arg("msg"), nb::arg("backends").none() = nb::make_tuple())
        .def(
            "_waitNotifications",
            [](RawAgent& self, nb::handle timeout) {
                const auto limit = readTimeout(timeout);
                Agent& live = self.get();
                return waitWithoutGil([&] { return live.waitNotifications(limit, interrupted); });
            },
            nb::arg("timeout").none() = nb::none())
        .def("_fileno", [](RawAgent& self) { return self.get().fileno(); })
        .def("_drain", [](RawAgent& self) { self.get().drain(); });
}

}  // namespace

void bindAgentMetadata(nb::class_<RawAgent>& agent) {
    bindPeers(agent);
    bindPeerWaits(agent);
    bindNotifications(agent);
    bindExchange(agent);
    agent.def("_stats", [](RawAgent& self) { return self.get().stats(); })
        .def("_telemetry",
             [](RawAgent& self) {
                 Agent& live = self.get();
                 const GilRelease release;
                 return live.telemetryJson();
             })
        .def("_dumpState", [](RawAgent& self) {
            Agent& live = self.get();
            const GilRelease release;
            return live.dumpState();
        });
}

}  // namespace nixl::python
