// The class nixlAgent, second part: prepared lists, transfers, waiting.
#include <nanobind/ndarray.h>

#include "module.h"

namespace nixl::python {
namespace {

using AnyArray = nb::ndarray<nb::ro>;

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

// The indices of one side of a prepared transfer: a view of the caller's array where it holds
// int32 or int64 without gaps, else a copy.
class Indices {
  public:
    Indices(nb::handle source, const char* side) {
        if (PyList_Check(source.ptr()) || PyTuple_Check(source.ptr())) {
            readList(source, side);
        } else if (nb::try_cast<AnyArray>(source, array_, false)) {
            readArray(side);
        } else if (PySequence_Check(source.ptr()) != 0 && !PyUnicode_Check(source.ptr()) &&
                   !PyBytes_Check(source.ptr())) {
            readList(nb::steal(PySequence_List(source.ptr())), side);
        } else {
            throwTypeError(std::string(side) +
                           " indices: expected a list or an integer array, not " +
                           nb::type_name(source.type()).c_str());
        }
    }

    size_t size() const { return size_; }
    bool narrow() const { return narrow_ != nullptr; }
    std::span<const int32_t> narrowSpan() const { return {narrow_, size_}; }
    std::span<const int64_t> wideSpan() {
        if (narrow_ != nullptr && wide_ == nullptr) {
            copy_.assign(narrow_, narrow_ + size_);
            wide_ = copy_.data();
        }
        return {wide_, size_};
    }

  private:
    void readList(nb::handle source, const char* side) {
        if (!source.is_valid()) {
            throw nb::python_error();
        }
        const nb::ft_object_guard guard(source);
        const bool list = PyList_Check(source.ptr());
        size_ = static_cast<size_t>(PyObject_Size(source.ptr()));
        copy_.resize(size_);
        for (size_t i = 0; i < size_; ++i) {
            const auto at = static_cast<Py_ssize_t>(i);
            copy_[i] =
                readOne(list ? PyList_GetItem(source.ptr(), at) : PyTuple_GetItem(source.ptr(), at),
                        i, side);
        }
        wide_ = copy_.data();
    }

    static int64_t readOne(PyObject* item, size_t at, const char* side) {
        long long value = -1;
        if (PyLong_CheckExact(item)) {
            value = PyLong_AsLongLong(item);
        } else if (PyIndex_Check(item)) {
            const nb::object number = nb::steal(PyNumber_Index(item));
            value = number.is_valid() ? PyLong_AsLongLong(number.ptr()) : -1;
        } else if (item != nullptr) {
            throwTypeError(std::string(side) + " index " + std::to_string(at) +
                           ": expected an integer, not " +
                           nb::type_name(nb::handle(item).type()).c_str());
        }
        if (value == -1 && PyErr_Occurred() != nullptr) {
            PyErr_Clear();
            throw Error(Status::invalidParam(std::string(side) + " index " + std::to_string(at) +
                                             ": does not fit 64 bits"));
        }
        return value;
    }

    void readArray(const char* side) {
        if (array_.ndim() != 1 || array_.device_type() != nb::device::cpu::value) {
            throw Error(Status::invalidParam(std::string(side) +
                                             " indices: the array must have one dimension, in host "
                                             "memory"));
        }
        size_ = array_.shape(0);
        const bool dense = size_ <= 1 || array_.stride(0) == 1;
        if (array_.dtype() == nb::dtype<int32_t>() && dense) {
            narrow_ = static_cast<const int32_t*>(array_.data());
        } else if (array_.dtype() == nb::dtype<int64_t>() && dense) {
            wide_ = static_cast<const int64_t*>(array_.data());
        } else if (!(copyAs<int32_t>() || copyAs<int64_t>() || copyAs<uint32_t>() ||
                     copyAs<uint64_t>() || copyAs<int16_t>() || copyAs<uint16_t>() ||
                     copyAs<int8_t>() || copyAs<uint8_t>())) {
            throw Error(Status::invalidParam(std::string(side) +
                                             " indices: the array must hold integers; of a mask, "
                                             "give the indices it selects"));
        }
    }

    template <typename T>
    bool copyAs() {
        if (array_.dtype() != nb::dtype<T>()) {
            return false;
        }
        const auto* data = static_cast<const T*>(array_.data());
        copy_.resize(size_);
        for (size_t i = 0; i < size_; ++i) {
            // A number, not a character, whatever its width.
            // NOLINTNEXTLINE(bugprone-signed-char-misuse)
            copy_[i] = static_cast<int64_t>(data[static_cast<int64_t>(i) * array_.stride(0)]);
        }
        wide_ = copy_.data();
        return true;
    }

    AnyArray array_;
    std::vector<int64_t> copy_;
    const int32_t* narrow_ = nullptr;
    const int64_t* wide_ = nullptr;
    size_t size_ = 0;
};

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
                  bool skip_merge) {
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
    Agent& agent = self.get();
    return prepareMaybeWithoutGil(left.size(), [&] {
        if (left.narrow() && right.narrow()) {
            return agent.prepareTransfer(op, local, left.narrowSpan(), remote, right.narrowSpan(),
                                         options);
        }
        return agent.prepareTransfer(op, local, left.wideSpan(), remote, right.wideSpan(), options);
    });
}

// Wraps an id into the handle class Python asked for; on failure the transfer is released.
nb::object wrap(RawAgent& self, nb::handle type, HandleId id) {
    try {
        return type(nb::find(self), id);
    } catch (...) {
        self.get().releaseTransfer(id);
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
    const int64_t index = waitWithoutGil([&] { return agent.waitAny(ids, limit, interrupted); });
    if (PyErr_Occurred() != nullptr) {
        throw nb::python_error();
    }
    return index;
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

void bindPrepared(nb::class_<RawAgent>& agent) {
    agent
        .def(
            "prepXferDlist",
            [](RawAgent& self, Text peer, const DescriptorList& list, nb::handle backends) {
                return prepareList(self, peer, list, backends);
            },
            nb::arg("agent_name"), nb::arg("descs").lock(), nb::arg("backend") = nb::make_tuple())
        .def(
            "prepXferDlist",
            [](RawAgent& self, const DescriptorList& list, nb::handle backends) {
                return prepareList(self, Text{""}, list, backends);
            },
            nb::arg("descs").lock(), nb::arg("backend") = nb::make_tuple())
        .def("prepXferDlist", &prepareRows, nb::arg("agent_name"), nb::arg("mem_type"),
             nb::arg("descs").lock(), nb::arg("backend") = nb::make_tuple())
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
            [](RawAgent& self, nb::handle type, OpType op, const DescriptorList& local,
               const DescriptorList& remote, Text peer, Text notification, nb::handle backends) {
                nb::object handle = wrap(
                    self, type, createXfer(self, op, local, remote, peer, notification, backends));
                nb::cast<XferHandle&>(handle).small = isSmall(local, remote);
                return handle;
            },
            nb::arg("type"), nb::arg("operation"), nb::arg("local_descs").lock(),
            nb::arg("remote_descs").lock(), nb::arg("remote_agent"), nb::arg("notif_msg"),
            nb::arg("backends"))
        .def(
            "_makeXfer",
            [](RawAgent& self, nb::handle type, OpType op, const DlistHandle& local,
               nb::handle local_indices, const DlistHandle& remote, nb::handle remote_indices,
               Text notification, nb::handle backends, bool skip_merge) {
                const HandleId left = local.checkedFor(self, "the local prepared list");
                const HandleId right = remote.checkedFor(self, "the remote prepared list");
                const HandleId id = makeXfer(self, op, left, local_indices, right, remote_indices,
                                             notification, backends, skip_merge);
                nb::object handle = wrap(self, type, id);
                if (nb::len_hint(local_indices) <= kSmallDescriptors) {
                    const TransferExplanation told = self.get().explainTransfer(id);
                    nb::cast<XferHandle&>(handle).small =
                        !told.lane.empty() && told.bytes <= kSmallBytes;
                }
                return handle;
            },
            nb::arg("type"), nb::arg("operation"), nb::arg("local_side"),
            nb::arg("local_indices").none(), nb::arg("remote_side"),
            nb::arg("remote_indices").none(), nb::arg("notif_msg"), nb::arg("backends"),
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
        .def("makeXferReq", &makeXfer, nb::arg("operation"), nb::arg("local_side"),
             nb::arg("local_indices"), nb::arg("remote_side"), nb::arg("remote_indices"),
             nb::arg("notif_msg") = "", nb::arg("backend") = nb::make_tuple(),
             nb::arg("skip_desc_merg") = false)
        .def("createXferReq", &createXfer, nb::arg("operation"), nb::arg("local_descs").lock(),
             nb::arg("remote_descs").lock(), nb::arg("remote_agent"), nb::arg("notif_msg") = "",
             nb::arg("backend") = nb::make_tuple())
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
