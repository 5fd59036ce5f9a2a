// include/nixl/transfer.h for Python: operations, figures of transfers, handles.
#include <cmath>

#include <nixl/transfer.h>

#include "module.h"

namespace nixl::python {
namespace {

// Accepted for compatibility: the agent is thread-safe in every mode.
enum class ThreadSync : uint8_t { NONE = 0, STRICT = 1, RW = 2 };
enum class CostMethod : uint8_t { ANALYTICAL_BACKEND = 0, UNKNOWN = 1 };

// nixlXferTelemetry: microseconds and counts.
struct Telemetry {
    uint64_t startTime = 0;
    uint64_t postDuration = 0;
    uint64_t xferDuration = 0;
    uint64_t totalBytes = 0;
    uint64_t descCount = 0;
    std::string backendName;
};

std::string handleText(nb::handle self, const OwnedId& handle) {
    char number[24];
    std::snprintf(number, sizeof(number), "0x%llx", static_cast<unsigned long long>(handle.first));
    return std::string(nb::str(self.type().attr("__name__")).c_str()) + "(" + number +
           ", released=" + (handle.id.load() == 0 ? "True)" : "False)");
}

nb::object errorOf(XferHandle& handle) {
    Agent& agent = handle.live->get();
    const HandleId id = handle.checked("the transfer");
    if (const std::optional<Error> error = postErrorOf(handle)) {
        return makeError(*error);
    }
    const Status status = agent.transferError(id);
    if (status.ok()) {
        return nb::none();
    }
    return makeError(Error(status, {agent.name(), {}, {}}));
}

nb::dict failuresOf(XferHandle& handle) {
    nb::dict out;
    for (const DescriptorFailure& failure :
         handle.live->get().transferFailures(handle.checked("the transfer"))) {
        out[nb::int_(failure.index)] = nb::make_tuple(failure.systemErrno, failure.bytes);
    }
    return out;
}

void release(XferHandle& handle) {
    const HandleId id = handle.take();
    if (Agent* agent = handle.live->ifOpen(); id != 0 && agent != nullptr) {
        const GilRelease no_gil;
        agent->releaseTransfer(id);
    }
}

void release(DlistHandle& handle) {
    const HandleId id = handle.take();
    if (Agent* agent = handle.live->ifOpen(); id != 0 && agent != nullptr) {
        const GilRelease no_gil;
        agent->releaseList(id);
    }
}

template <typename Handle>
nb::class_<Handle> bindHandle(nb::module_& module, const char* name, const char* doc) {
    nb::class_<Handle> type(module, name, nb::is_weak_referenceable(), doc);
    type.def(nb::init<nb::object, HandleId>(), nb::arg("agent"), nb::arg("value"))
        .def_ro("_agent", &Handle::agent)
        .def_prop_ro("_handle", [](const Handle& handle) { return handle.id.load(); })
        .def_prop_ro("_released", [](const Handle& handle) { return handle.id.load() == 0; })
        .def("release", [](Handle& handle) { release(handle); })
        .def("__repr__",
             [](nb::handle self) { return handleText(self, nb::cast<const Handle&>(self)); });
    return type;
}

void bindXferHandle(nb::module_& module) {
    auto type = bindHandle<XferHandle>(module, "nixlXferHandle",
                                       "One transfer; released when the object goes.");
    type.def_prop_ro("error", &errorOf)
        .def_prop_ro("failed", &failuresOf)
        .def("cancel",
             [](XferHandle& handle) {
                 Agent& agent = handle.live->get();
                 const HandleId id = handle.checked("the transfer");
                 const GilRelease no_gil;
                 agent.cancelTransfer(id);
             })
        .def_prop_ro("progress",
                     [](XferHandle& handle) {
                         const TransferProgress now =
                             handle.live->get().transferProgress(handle.checked("the transfer"));
                         return nb::make_tuple(now.bytesDone, now.bytesTotal);
                     })
        .def(
            "wait",
            [](XferHandle& handle, nb::handle timeout) {
                Agent& agent = handle.live->get();
                const HandleId id = handle.checked("the transfer");
                const auto limit = readTimeout(timeout);
                try {
                    waitWithoutGil([&] { return agent.waitTransfer(id, limit, interrupted); });
                } catch (const Error& error) {
                    if (handle.live->raisesErrors() || error.code() == ErrorCode::NOT_POSTED ||
                        agent.transferState(id) == XferState::PENDING) {
                        throw;
                    }
                    return "ERR";
                }
                return "DONE";
            },
            nb::arg("timeout").none() = nb::none());
}

}  // namespace

std::optional<Error> postErrorOf(XferHandle& handle) {
    const std::lock_guard lock(handle.mutex);
    return handle.postError;
}

HandleId OwnedId::checked(const char* what) const {
    const HandleId value = id.load(std::memory_order_acquire);
    if (value == 0) {
        throw Error(Status::invalidParam(std::string(what) + " was released"));
    }
    return value;
}

HandleId OwnedId::checkedFor(const RawAgent& wanted, const char* what) const {
    if (live != wanted.live) {
        throw Error(Status::invalidParam(std::string(what) + " belongs to agent \"" +
                                         live->get().name() +
                                         "\" (made from another raw agent), "
                                         "not to this agent \"" +
                                         wanted.get().name() + "\""));
    }
    return checked(what);
}

XferHandle::~XferHandle() {
    const HandleId value = take();
    Agent* agent = live->ifOpen();
    if (value == 0 || agent == nullptr) {
        return;
    }
    try {
        if (!posted || agent->transferState(value) != XferState::PENDING) {
            agent->releaseTransfer(value);
            return;
        }
        const GilRelease no_gil;  // a cancel may take a while
        agent->releaseTransfer(value);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
        // Another process (fork), or the agent is gone: nothing is left to release.
    }
}

DlistHandle::~DlistHandle() {
    const HandleId value = take();
    if (Agent* agent = live->ifOpen(); value != 0 && agent != nullptr) {
        try {
            agent->releaseList(value);
        } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
            // As above.
        }
    }
}

std::chrono::nanoseconds readTimeout(nb::handle seconds) {
    if (seconds.is_none()) {
        return std::chrono::nanoseconds(-1);
    }
    const double value = PyFloat_AsDouble(seconds.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) != 0) {
            PyErr_Clear();
            throwTypeError(std::string("timeout must be a number of seconds or None, not ") +
                           nb::type_name(seconds.type()).c_str());
        }
        throw nb::python_error();
    }
    if (std::isnan(value) || value < 0) {
        throw Error(Status::invalidParam("timeout " + std::to_string(value) +
                                         " s: must be 0 or more, or None for no limit"));
    }
    if (value > 9e9) {
        return std::chrono::nanoseconds(-1);
    }
    return std::chrono::nanoseconds(static_cast<int64_t>(value * 1e9));
}

void bindTransfers(nb::module_& module) {
    nb::enum_<OpType>(module, "nixl_xfer_op_t", nb::is_arithmetic(), "Direction of a transfer.")
        .value("NIXL_READ", OpType::READ)
        .value("NIXL_WRITE", OpType::WRITE)
        .export_values();
    nb::enum_<CostMethod>(module, "nixl_cost_t", nb::is_arithmetic(), "How a cost was found.")
        .value("NIXL_COST_ANALYTICAL_BACKEND", CostMethod::ANALYTICAL_BACKEND)
        .value("NIXL_COST_UNKNOWN", CostMethod::UNKNOWN)
        .export_values();
    nb::enum_<ThreadSync>(module, "nixl_thread_sync_t", nb::is_arithmetic(),
                          "Accepted for compatibility: the agent is thread-safe in every mode.")
        .value("NIXL_THREAD_SYNC_NONE", ThreadSync::NONE)
        .value("NIXL_THREAD_SYNC_STRICT", ThreadSync::STRICT)
        .value("NIXL_THREAD_SYNC_RW", ThreadSync::RW)
        .value("NIXL_THREAD_SYNC_DEFAULT", ThreadSync::NONE)
        .export_values();
    module.attr("NIXL_THREAD_SYNC_DEFAULT") = module.attr("NIXL_THREAD_SYNC_NONE");
    nb::class_<Telemetry>(module, "nixlXferTelemetry", "Figures of one finished transfer.")
        .def(nb::init<>())
        .def_rw("startTime", &Telemetry::startTime)
        .def_rw("postDuration", &Telemetry::postDuration)
        .def_rw("xferDuration", &Telemetry::xferDuration)
        .def_rw("totalBytes", &Telemetry::totalBytes)
        .def_rw("descCount", &Telemetry::descCount)
        .def_rw("backendName", &Telemetry::backendName)
        .def("__repr__", [](const Telemetry& t) {
            return "nixlXferTelemetry(startTime=" + std::to_string(t.startTime) +
                   ", postDuration=" + std::to_string(t.postDuration) +
                   ", xferDuration=" + std::to_string(t.xferDuration) +
                   ", totalBytes=" + std::to_string(t.totalBytes) +
                   ", descCount=" + std::to_string(t.descCount) + ", backendName=" + t.backendName +
                   ")";
        });
}

nb::object toTelemetry(const TransferTelemetry& figures, std::string backend) {
    const auto start =
        std::chrono::duration_cast<std::chrono::microseconds>(figures.startTime.time_since_epoch());
    return nb::cast(Telemetry{static_cast<uint64_t>(start.count()),
                              static_cast<uint64_t>(figures.postDuration.count()),
                              static_cast<uint64_t>(figures.xferDuration.count()),
                              figures.totalBytes, figures.descCount, std::move(backend)});
}

void bindHandles(nb::module_& module) {
    bindXferHandle(module);
    bindHandle<DlistHandle>(module, "nixlDlistHandle",
                            "One prepared descriptor list; released when the object goes.");
}

}  // namespace nixl::python
