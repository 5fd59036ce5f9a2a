// What the files of the Python binding share: argument types, the raw agent, handles, errors.
// Functions here are called with the GIL held unless they say otherwise.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <nixl/agent.h>

#include "gil.h"

namespace nixl::python {

namespace nb = nanobind;

// nixl_status_t: error codes and the two states that are none.
enum class StatusValue : int {
    IN_PROG = 1,
    SUCCESS = 0,
    NOT_POSTED = -1,
    INVALID_PARAM = -2,
    BACKEND = -3,
    NOT_FOUND = -4,
    MISMATCH = -5,
    NOT_ALLOWED = -6,
    REPOST_ACTIVE = -7,
    UNKNOWN = -8,
    NOT_SUPPORTED = -9,
    REMOTE_DISCONNECT = -10,
    CANCELED = -11,
    NO_TELEMETRY = -12,
    TIMEOUT = -13,
};

// A str (as UTF-8) or a bytes-like argument: the bytes of the caller's object, valid during the
// call.
struct Text {
    std::string_view view;
    std::string str() const { return std::string(view); }
};

// False, without a Python error, where `source` is neither str nor bytes-like. Temporaries are
// handed to `cleanup`.
bool readText(PyObject* source, std::string_view& out, nb::detail::cleanup_list* cleanup) noexcept;

// The C++ agent behind one raw nixlAgent and every handle made from it. Closing it ends its
// transfers; it is destroyed with the last of its users.
class LiveAgent {
  public:
    LiveAgent(std::string name, AgentConfig config);

    // Throws NOT_ALLOWED once closed.
    Agent& get() {
        if (closed_.load(std::memory_order_relaxed)) {
            throwClosed();
        }
        return agent_;
    }
    // For destructors: null once closed.
    Agent* ifOpen() noexcept { return closed_.load() ? nullptr : &agent_; }
    bool raisesErrors() const noexcept { return raisesErrors_; }
    // Without the GIL. Later calls do nothing.
    void close() noexcept;
    bool closed() const noexcept { return closed_.load(); }

  private:
    [[noreturn]] void throwClosed() const;

    std::atomic<bool> closed_{false};
    bool raisesErrors_;
    Agent agent_;
};

using LiveAgentPtr = std::shared_ptr<LiveAgent>;

// The class nixlAgent.
struct RawAgent {
    RawAgent(std::string name, AgentConfig config);
    Agent& get() const { return live->get(); }

    LiveAgentPtr live;
};

// What both kinds of handles have: an id of one agent, released once.
struct OwnedId {
    OwnedId(nb::object raw, HandleId value)
        : agent(std::move(raw)), live(nb::cast<RawAgent&>(agent).live), first(value), id(value) {}
    OwnedId(nb::object raw, LiveAgentPtr its_live, HandleId value)
        : agent(std::move(raw)), live(std::move(its_live)), first(value), id(value) {}
    OwnedId(const OwnedId&) = delete;
    OwnedId& operator=(const OwnedId&) = delete;

    // Throws INVALID_PARAM after release.
    HandleId checked(const char* what) const;
    // The same, and for a handle of another agent.
    HandleId checkedFor(const RawAgent& wanted, const char* what) const;
    // Takes the id, so that it is released once; 0 afterwards.
    HandleId take() noexcept { return id.exchange(0); }

    nb::object agent;  // the nixlAgent it belongs to
    LiveAgentPtr live;
    HandleId first;  // the id, for repr, also after release
    std::atomic<HandleId> id;
};

// The class nixlXferHandle: one transfer. Released when the object goes, whatever its state.
struct XferHandle : OwnedId {
    using OwnedId::OwnedId;
    ~XferHandle();

    bool small = false;               // a post is over in a few microseconds: it keeps the GIL
    std::atomic<bool> posted{false};  // ever
    std::mutex mutex;
    // Why the last post failed at once, without raise_on_error. Guarded by `mutex`, in which no
    // call into Python may happen.
    std::optional<Error> postError;
};

std::optional<Error> postErrorOf(XferHandle& handle);

// The class nixlDlistHandle: one prepared descriptor list.
struct DlistHandle : OwnedId {
    using OwnedId::OwnedId;
    ~DlistHandle();

    uint64_t longest = UINT64_MAX;  // bytes of its longest descriptor, where it is memory
};

// The class nixlRegDList: the list, and who registered it (a weak reference to the agent and the
// backends it named), so that `with` can deregister.
struct RegList {
    RegistrationList list;
    nb::object registration;
};

// The class nixlRemoteDList.
struct RemoteList {
    struct Entry {
        Descriptor descriptor;
        std::string agent;
        bool operator==(const Entry&) const = default;
    };
    MemType type = MemType::DRAM;
    std::vector<Entry> entries;
    bool operator==(const RemoteList&) const = default;
};

// Reads what a list is made of: a number of empty entries, a sequence of tuples, or a
// two-dimensional integer array. Throw nixl::Error or a Python TypeError that names the entry.
DescriptorList readDescriptors(MemType type, nb::handle source);
RegList readRegistrations(MemType type, nb::handle source);
RemoteList readRemotes(MemType type, nb::handle source);
// One tuple; `row` names it in errors.
Descriptor readDescriptor(nb::handle tuple, size_t row);
RegistrationList::Entry readRegistration(nb::handle tuple, size_t row);
RemoteList::Entry readRemote(nb::handle tuple, size_t row);
// Rows of an integer array with 3 or 5 columns; empty where `source` is no array.
std::optional<DescriptorList> readArray(MemType type, nb::handle source, bool strided);

// The exception object for a status; `raise` sets it as the current Python error.
nb::object makeError(const Error& error);
void raiseError(const Error& error);
// A plain Python TypeError.
[[noreturn]] void throwTypeError(const std::string& text);

// Backend handles of the raw interface: one number per name, the same in every agent.
uint64_t backendHandle(const std::string& name);
std::string backendName(nb::handle handle);                  // a number or a name
std::vector<std::string> backendNames(nb::handle sequence);  // None: empty

nb::object typeName(MemType type);  // "DRAM_SEG"
nb::dict toDict(const std::map<std::string, std::string>& values);
// The items of a list or tuple, whose items may run Python code while they are read: each is held,
// and a list that has another length than before is an error that `what` names.
size_t sequenceSize(nb::handle source);
nb::object sequenceItem(nb::handle source, size_t at, size_t size, const char* what);
// An integer argument; a TypeError names it.
int64_t readInteger(nb::handle value, const char* name);

// The argument `timeout`: seconds, or None for no limit.
std::chrono::nanoseconds readTimeout(nb::handle seconds);
nb::object toTelemetry(const TransferTelemetry& figures, std::string backend);
nb::bytes toBytes(std::string_view text);
// Text for people: what is not UTF-8 (of a path or key) is shown as \xff.
nb::object toShown(std::string_view text);
// The name of a file or object, as Python makes and takes names: what is not UTF-8 is in a str as
// os.fsdecode has it. `what` names the argument in the TypeError.
nb::object toName(std::string_view name);
std::string readName(nb::handle source, const std::string& what);

// Throws the Python error that a signal's handler raised, if one did.
inline void throwIfRaised() {
    if (PyErr_Occurred() != nullptr) {
        throw nb::python_error();
    }
}

// Runs a C++ wait without the GIL; a Python error raised by a signal's handler wins over its end,
// whatever that is.
template <typename Wait>
auto waitWithoutGil(const Wait& wait) {
    try {
        const auto end = [&] {
            const GilRelease release;
            return wait();
        }();
        throwIfRaised();
        return end;
    } catch (const Error&) {
        throwIfRaised();
        throw;
    }
}

// Asks Python whether a signal's handler raised; called by waiting threads without the GIL.
bool interrupted();

// A nixl.store.FrameworkStore for the library, which calls it on a thread of its own.
std::shared_ptr<FrameworkStore> makePythonStore(nb::object store);

void bindErrors(nb::module_& module);
// Of a later import: the exception classes stay those that were raised and caught before.
void repeatErrors();
void bindDescriptors(nb::module_& module);
void bindTransfers(nb::module_& module);
void bindHandles(nb::module_& module);  // after the agent, which they name
void bindAgent(nb::module_& module);
void bindDevice(nb::module_& module);
void bindMemory(nb::module_& module);
void bindKvJobs(nb::module_& module);
void bindKvRooms(nb::module_& module);
// Parts of the class nixlAgent.
void bindAgentTransfers(nb::class_<RawAgent>& agent);
void bindAgentMetadata(nb::class_<RawAgent>& agent);

}  // namespace nixl::python

namespace nanobind::detail {

template <>
struct type_caster<nixl::python::Text> {
    NB_TYPE_CASTER(nixl::python::Text, const_name("str | bytes"))

    bool from_python(handle source, uint32_t /*flags*/, cleanup_list* cleanup) noexcept {
        return nixl::python::readText(source.ptr(), value.view, cleanup);
    }
    static handle from_cpp(const nixl::python::Text& text, rv_policy, cleanup_list*) noexcept {
        return PyBytes_FromStringAndSize(text.view.data(),
                                         static_cast<Py_ssize_t>(text.view.size()));
    }
};

}  // namespace nanobind::detail
