// The class nixlAgent, second part: prepared lists, transfers, waiting.
#include "indices.h"
#include "module.h"

namespace nixl::python {
namespace {

// Below this many descriptors, preparing takes less time than giving the GIL away may cost.
constexpr size_t kFewDescriptors = 64;
// Posts of so many descriptors and bytes of memory end within a few microseconds.
constexpr size_t kSmallDescriptors = 8;
constexpr uint64_t kSmallBytes = 32768;

nb::object stateName(XferState state) {
    static const nb::object* done = new nb::str("DONE");
    static const nb::object* pending = new nb::str("PROC");
    static const nb::object* failed = new nb::str("ERR");
    switch (state) {
        case XferState::DONE:
            return *done;
        case XferState::PENDING:
            return *pending;
        default:
            return *failed;
    }
}

TransferOptions makeOptions(Text notification, nb::handle backends, bool skip_merge) {
    TransferOptions options;
    options.backends = backendNames(backends);
    if (!notification.view.empty()) {
        options.notification = notification.str();
    }
    options.skipDescMerge = skip_merge;
    return options;
}

template <typename Prepare>
HandleId prepareMaybeWithoutGil(size_t descriptors, const Prepare& prepare) {
    if (descriptors <= kFewDescriptors) {
        return prepare().detach();
    }
    const GilRelease release;
    return prepare().detach();
}

HandleId createXfer(RawAgent& self,
                    OpType op,
                    const DescriptorList& local,
                    const DescriptorList& remote,
                    Text peer,
                    Text notification,
                    nb::handle backends) {
    const TransferOptions options = makeOptions(notification, backends, false);
    Agent& agent = self.get();
    if (local.size() + remote.size() <= kFewDescriptors) {
        return agent.prepareTransfer(op, local, remote, peer.str(), options).detach();
    }
    // Copies, since without the GIL another thread may change the caller's lists.
    // NOLINTBEGIN(performance-unnecessary-copy-initialization)
    const DescriptorList left = local;
    const DescriptorList right = remote;
    // NOLINTEND(performance-unnecessary-copy-initialization)
    const GilRelease release;
    return agent.prepareTransfer(op, left, right, peer.str(), options).detach();
}

HandleId makeXfer(RawAgent& self,
                  OpType op,
                  HandleId local,
                  nb::handle local_indices,
                  HandleId remote,
                  nb::handle remote_indices,
                  Text notification,
                  nb::handle backends,
                  bool skip_merge,
                  size_t* count) {
    const TransferOptions options = makeOptions(notification, backends, skip_merge);
    Indices left(local_indices, "local");
    Indices right(remote_indices, "remote");
    if (left.size() != right.size()) {
        throw Error(Status::invalidParam(std::to_string(left.size()) + " local indices but " +
                                         std::to_string(right.size()) + " remote ones"));
    }
    if (left.size() == 0) {
        throw Error(Status::invalidParam("no indices: a transfer needs at least one descriptor"));
    }
    if (count != nullptr) {
        *count = left.size();
    }
    Agent& agent = self.get();
    return prepareMaybeWithoutGil(left.size(), [&] {
        if (left.narrow() && right.narrow()) {
            return agent.prepareTransfer(op, local, left.narrowSpan(), remote, right.narrowSpan(),
                                         options);
        }
        return agent.prepareTransfer(op, local, left.wideSpan(), remote, right.wideSpan(), options);
    });
}

using Self = nb::pointer_and_handle<RawAgent>;

// Wraps an id into the handle class Python asked for, a subclass of Handle's without a constructor
// of its own; on failure the id is released.
template <typename Handle>
Handle& wrap(const Self& self, nb::handle type, HandleId id, nb::object& object) {
    const auto undo = [&] {
        if constexpr (std::is_same_v<Handle, XferHandle>) {
            self.p->get().releaseTransfer(id);
        } else {
            self.p->get().releaseList(id);
        }
    };
    static const nb::handle base = nb::type<Handle>();
    if (!PyType_Check(type.ptr()) ||
        PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(type.ptr()),
                         reinterpret_cast<PyTypeObject*>(base.ptr())) == 0) {
        undo();
        throwTypeError("type must be a class of handles");
    }
    try {
        object = nb::inst_alloc(type);
        auto* const handle = nb::inst_ptr<Handle>(object);
        new (handle) Handle(nb::borrow(self.h), self.p->live, id);
        nb::inst_mark_ready(object);
        return *handle;
    } catch (...) {
        undo();
        throw;
    }
}

bool isMemory(MemType type) {
    return type == MemType::DRAM || type == MemType::VRAM;
}

bool isSmall(const DescriptorList& local, const DescriptorList& remote) {
    if (!isMemory(local.type()) || !isMemory(remote.type()) || local.size() > kSmallDescriptors) {
        return false;
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < local.size(); ++i) {
        bytes += local.at(i).size;
    }
    return bytes <= kSmallBytes;
}

XferState post(RawAgent& self, XferHandle& handle, Text notification) {
    Agent& agent = self.get();
    const HandleId id = handle.checkedFor(self, "the transfer");
    std::optional<std::string_view> text;
    if (!notification.view.empty()) {
        text = notification.view;
    }
    handle.posted = true;
    if (handle.small) {
        return agent.postTransfer(id, text);
    }
    const GilRelease release;
    return agent.postTransfer(id, text);
}

// Wrong use, as opposed to a transfer that failed.
bool isMisuse(ErrorCode code) {
    return code == ErrorCode::INVALID_PARAM || code == ErrorCode::REPOST_ACTIVE ||
           code == ErrorCode::NOT_ALLOWED;
}

nb::object transfer(RawAgent& self, XferHandle& handle, Text notification) {
    if (self.live->raisesErrors()) {
        const XferState state = post(self, handle, notification);
        if (state == XferState::FAILED || state == XferState::CANCELED) {
            self.get().checkTransfer(handle.checked("the transfer"));
        }
        return stateName(state);
    }
    std::optional<Error> failed;
    XferState state = XferState::FAILED;
    try {
        state = post(self, handle, notification);
    } catch (const Error& error) {
        if (isMisuse(error.code())) {
            throw;
        }
        failed = error;
    }
    const std::lock_guard lock(handle.mutex);
    handle.postError = std::move(failed);
    return stateName(state);
}

// A caller who polls may do a part of the work himself, which is no time to hold the GIL.
XferState poll(Agent& agent, HandleId id, bool small) {
    if (small || agent.transferState(id) != XferState::PENDING) {
        return agent.checkTransfer(id);
    }
    const GilRelease no_gil;
    return agent.checkTransfer(id);
}

nb::object check(RawAgent& self, XferHandle& handle) {
    const HandleId id = handle.checkedFor(self, "the transfer");
    if (self.live->raisesErrors()) {
        return stateName(poll(self.get(), id, handle.small));
    }
    if (postErrorOf(handle).has_value()) {
        return stateName(XferState::FAILED);
    }
    return stateName(self.get().transferState(id));
}

StatusValue statusOf(XferState state) {
    return state == XferState::PENDING ? StatusValue::IN_PROG : StatusValue::SUCCESS;
}

int64_t waitAny(RawAgent& self, nb::handle handles, nb::handle timeout) {
    std::vector<HandleId> ids;
    for (const nb::handle item : handles) {
        ids.push_back(nb::cast<XferHandle&>(item).checkedFor(self, "the transfer"));
    }
    if (ids.empty()) {
        throw Error(Status::invalidParam("no handles to wait for"));
    }
    const auto limit = readTimeout(timeout);
    Agent& agent = self.get();
    return waitWithoutGil([&] { return agent.waitAny(ids, limit, interrupted); });
}

nb::dict explain(RawAgent& self, XferHandle& handle) {
    const TransferExplanation told =
        self.get().explainTransfer(handle.checkedFor(self, "the transfer"));
    nb::dict out;
    out["backend"] = told.backend;
    out["lane"] = told.lane;
    out["reason"] = told.reason;
    out["device"] = told.device;
    out["descriptors"] = told.descriptors;
    out["segments"] = told.segments;
    out["bytes"] = told.bytes;
    out["inline"] = told.lastPostInline;
    return out;
}

HandleId prepareList(RawAgent& self, Text peer, DescriptorList list, nb::handle backends) {
    const std::vector<std::string> names = backendNames(backends);
    const std::string name = peer.view == "NIXL_INIT_AGENT" ? std::string() : peer.str();
    Agent& agent = self.get();
    const GilRelease release;
    return agent.prepareList(name, std::move(list), names).detach();
}

HandleId prepareRows(
    RawAgent& self, Text peer, MemType type, nb::handle rows, nb::handle backends) {
    std::optional<DescriptorList> list = readArray(type, rows, true);
    if (!list.has_value()) {
        throwTypeError(
            std::string("prepXferDlist: expected an N x 3 or N x 5 integer array, not ") +
            nb::type_name(rows.type()).c_str());
    }
    return prepareList(self, peer, std::move(*list), backends);
}

// Bytes of the longest descriptor of a list of memory; of others a post is never short.
uint64_t longestOf(const DescriptorList& list) {
    if (!isMemory(list.type())) {
        return UINT64_MAX;
    }
    uint64_t longest = 0;
    for (const Descriptor& one : list.flat()) {
        longest = std::max(longest, one.size);
    }
    for (const DescriptorRun& run : list.runs()) {
        longest = std::max(longest, run.size);
    }
    return longest;
}

// A handle of the class Python asked for. `descs`: a list, or with a memory type rows of an array.
nb::object prepare(Self self,
                   nb::handle type,
                   Text peer,
                   nb::handle mem_type,
                   nb::handle descs,
                   nb::handle backends) {
    DescriptorList list;
    if (mem_type.is_none()) {
        list = nb::cast<const DescriptorList&>(descs);
    } else if (std::optional<DescriptorList> rows =
                   readArray(nb::cast<MemType>(mem_type), descs, true)) {
        list = std::move(*rows);
    } else {
        throwTypeError(std::string("expected an N x 3 or N x 5 integer array, not ") +
                       nb::type_name(descs.type()).c_str());
    }
    const uint64_t longest = longestOf(list);
    nb::object handle;
    wrap<DlistHandle>(self, type, prepareList(*self.p, peer, std::move(list), backends), handle)
        .longest = longest;
    return handle;
}

void bindPrepared(nb::class_<RawAgent>& agent) {
    agent.def("_prepList", &prepare, nb::arg("type"), nb::arg("agent_name"),
              nb::arg("mem_type").none(), nb::arg("descs").lock(), nb::arg("backends").none());
    agent
        .def(
            "prepXferDlist",
            [](RawAgent& self, Text peer, const DescriptorList& list, nb::handle backends) {
                return prepareList(self, peer, list, backends);
            },
            nb::arg("agent_name"), nb::arg("descs").lock(),
            nb::arg("backend").none() = nb::make_tuple())
        .def(
            "prepXferDlist",
            [](RawAgent& self, const DescriptorList& list, nb::handle backends) {
                return prepareList(self, Text{""}, list, backends);
            },
            nb::arg("descs").lock(), nb::arg("backend").none() = nb::make_tuple())
        .def("prepXferDlist", &prepareRows, nb::arg("agent_name"), nb::arg("mem_type"),
             nb::arg("descs").lock(), nb::arg("backend").none() = nb::make_tuple())
        .def("releasedDlistH", [](RawAgent& self, HandleId id) {
            self.get().releaseList(id);
            return StatusValue::SUCCESS;
        });
}

void bindFastCalls(nb::class_<RawAgent>& agent) {
    agent.def("_transfer", &transfer, nb::arg("handle"), nb::arg("notif_msg") = "")
        .def("_check", &check, nb::arg("handle"))
        .def(
            "_createXfer",
            [](Self self, nb::handle type, OpType op, const DescriptorList& local,
               const DescriptorList& remote, Text peer, Text notification, nb::handle backends) {
                const bool small = isSmall(local, remote);  // others may change them meanwhile
                nb::object handle;
                wrap<XferHandle>(
                    self, type,
                    createXfer(*self.p, op, local, remote, peer, notification, backends), handle)
                    .small = small;
                return handle;
            },
            nb::arg("type"), nb::arg("operation"), nb::arg("local_descs").lock(),
            nb::arg("remote_descs").lock(), nb::arg("remote_agent"), nb::arg("notif_msg"),
            nb::arg("backends").none())
        .def(
            "_makeXfer",
            [](Self self, nb::handle type, OpType op, const DlistHandle& local,
               nb::handle local_indices, const DlistHandle& remote, nb::handle remote_indices,
               Text notification, nb::handle backends, bool skip_merge) {
                const HandleId left = local.checkedFor(*self.p, "the local prepared list");
                const HandleId right = remote.checkedFor(*self.p, "the remote prepared list");
                size_t count = 0;
                const HandleId id =
                    makeXfer(*self.p, op, left, local_indices, right, remote_indices, notification,
                             backends, skip_merge, &count);
                nb::object handle;
                wrap<XferHandle>(self, type, id, handle).small =
                    count <= kSmallDescriptors && local.longest <= kSmallBytes / count &&
                    remote.longest != UINT64_MAX;
                return handle;
            },
            nb::arg("type"), nb::arg("operation"), nb::arg("local_side"),
            nb::arg("local_indices").none(), nb::arg("remote_side"),
            nb::arg("remote_indices").none(), nb::arg("notif_msg"), nb::arg("backends").none(),
            nb::arg("skip_desc_merge"))
        .def("_idOf",
             [](RawAgent& self, const XferHandle& handle) {
                 return handle.checkedFor(self, "the transfer");
             })
        .def("_pending",
             [](RawAgent& self, const XferHandle& handle) {
                 const HandleId id = handle.checkedFor(self, "the transfer");
                 return self.get().transferState(id) == XferState::PENDING;
             })
        .def("_owns",
             [](RawAgent& self, const XferHandle& handle) { return handle.live == self.live; })
        .def("_owns",
             [](RawAgent& self, const DlistHandle& handle) { return handle.live == self.live; })
        .def("_waitAny", &waitAny, nb::arg("handles"), nb::arg("timeout").none())
        .def("_explain", &explain);
}

}  // namespace

void bindAgentTransfers(nb::class_<RawAgent>& agent) {
    bindPrepared(agent);
    bindFastCalls(agent);
    agent
        .def(
            "makeXferReq",
            [](RawAgent& self, OpType op, HandleId local, nb::handle local_indices, HandleId remote,
               nb::handle remote_indices, Text notification, nb::handle backends, bool skip_merge) {
                return makeXfer(self, op, local, local_indices, remote, remote_indices,
                                notification, backends, skip_merge, nullptr);
            },
            nb::arg("operation"), nb::arg("local_side"), nb::arg("local_indices"),
            nb::arg("remote_side"), nb::arg("remote_indices"), nb::arg("notif_msg") = "",
            nb::arg("backend").none() = nb::make_tuple(), nb::arg("skip_desc_merg") = false)
        .def("createXferReq", &createXfer, nb::arg("operation"), nb::arg("local_descs").lock(),
             nb::arg("remote_descs").lock(), nb::arg("remote_agent"), nb::arg("notif_msg") = "",
             nb::arg("backend").none() = nb::make_tuple())
        .def(
            "postXferReq",
            [](RawAgent& self, HandleId id, Text notification) {
                std::optional<std::string_view> text;
                if (!notification.view.empty()) {
                    text = notification.view;
                }
                Agent& live = self.get();
                const GilRelease release;
                return statusOf(live.postTransfer(id, text));
            },
            nb::arg("reqh"), nb::arg("notif_msg") = "")
        .def("getXferStatus",
             [](RawAgent& self, HandleId id) { return statusOf(self.get().checkTransfer(id)); })
        .def("releaseXferReq",
             [](RawAgent& self, HandleId id) {
                 Agent& live = self.get();
                 const GilRelease release;
                 live.releaseTransfer(id);
                 return StatusValue::SUCCESS;
             })
        .def("queryXferBackend",
             [](RawAgent& self, HandleId id) {
                 return backendHandle(self.get().transferBackend(id));
             })
        .def(
            "getXferTelemetry",
            [](RawAgent& self, HandleId id) {
                Agent& live = self.get();
                return toTelemetry(live.transferTelemetry(id), live.transferBackend(id));
            },
            nb::arg("reqh"))
        .def(
            "estimateXferCost",
            [](RawAgent& self, HandleId id) {
                const TransferCost cost = self.get().estimateTransfer(id);
                return nb::make_tuple(cost.duration.count(), cost.margin.count(), cost.method);
            },
            nb::arg("req_handle"));
}

}  // namespace nixl::python
