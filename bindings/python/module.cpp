// The module nixl._bindings: puts its parts together and holds what they share.
#include "module.h"

#include <mutex>

#include "once.h"

namespace nixl::python {

bool readText(PyObject* source, std::string_view& out, nb::detail::cleanup_list* cleanup) noexcept {
    if (PyUnicode_Check(source)) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(source, &size);
        if (data == nullptr) {
            PyErr_Clear();
            return false;
        }
        out = {data, static_cast<size_t>(size)};
        return true;
    }
    PyObject* bytes = source;
    if (!PyBytes_Check(source)) {
        if (cleanup == nullptr || (!PyByteArray_Check(source) && !PyMemoryView_Check(source))) {
            return false;
        }
        bytes = PyBytes_FromObject(source);
        if (bytes == nullptr) {
            PyErr_Clear();
            return false;
        }
        cleanup->append(bytes);
    }
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) != 0) {
        PyErr_Clear();
        return false;
    }
    out = {data, static_cast<size_t>(size)};
    return true;
}

void throwTypeError(const std::string& text) {
    PyErr_SetString(PyExc_TypeError, text.c_str());
    throw nb::python_error();
}

size_t sequenceSize(nb::handle source) {
    return static_cast<size_t>(PyList_Check(source.ptr()) ? PyList_Size(source.ptr())
                                                          : PyTuple_Size(source.ptr()));
}

nb::object sequenceItem(nb::handle source, size_t at, size_t size, const char* what) {
    const nb::ft_object_guard guard(source);
    if (sequenceSize(source) != size) {
        throw Error(Status::invalidParam(std::string(what) +
                                         ": the list changed its length while it was read"));
    }
    const auto position = static_cast<Py_ssize_t>(at);
    return nb::borrow(PyList_Check(source.ptr()) ? PyList_GetItem(source.ptr(), position)
                                                 : PyTuple_GetItem(source.ptr(), position));
}

int64_t readInteger(nb::handle value, const char* name) {
    if (!PyIndex_Check(value.ptr())) {
        throwTypeError(std::string(name) + " must be an integer, not " +
                       nb::type_name(value.type()).c_str());
    }
    const nb::object number = nb::steal(PyNumber_Index(value.ptr()));
    if (!number.is_valid()) {
        throw nb::python_error();
    }
    const long long read = PyLong_AsLongLong(number.ptr());
    if (read == -1) {
        throwIfRaised();
    }
    return read;
}

nb::bytes toBytes(std::string_view text) {
    return nb::bytes(text.data(), text.size());
}

nb::object toShown(std::string_view text) {
    return nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()),
                                          "backslashreplace"));
}

nb::object toName(std::string_view name) {
    return nb::steal(
        PyUnicode_DecodeUTF8(name.data(), static_cast<Py_ssize_t>(name.size()), "surrogateescape"));
}

std::string readName(nb::handle source, const std::string& what) {
    std::string_view text;
    nb::object encoded;
    if (PyUnicode_Check(source.ptr())) {
        encoded = nb::steal(PyUnicode_AsEncodedString(source.ptr(), "utf-8", "surrogateescape"));
    } else if (PyByteArray_Check(source.ptr()) || PyMemoryView_Check(source.ptr())) {
        encoded = nb::steal(PyBytes_FromObject(source.ptr()));
    } else {
        encoded = nb::borrow(source);
    }
    if (encoded.is_valid() && readText(encoded.ptr(), text, nullptr)) {
        return std::string(text);
    }
    PyErr_Clear();
    const std::string kind = nb::type_name(source.type()).c_str();
    throwTypeError(what + " must be str (that UTF-8 can encode) or bytes, not " +
                   (PyUnicode_Check(source.ptr()) ? nb::repr(source).c_str() : kind));
}

bool interrupted() {
    const GilAcquire gil;
    return PyErr_CheckSignals() != 0;
}

namespace {

struct BackendTable {
    std::mutex mutex;
    std::vector<std::string> names;
};

BackendTable& backendTable() {
    static auto* table = new BackendTable;  // never destroyed: handles may outlive the module
    return *table;
}

}  // namespace

uint64_t backendHandle(const std::string& name) {
    BackendTable& table = backendTable();
    const std::lock_guard lock(table.mutex);
    for (size_t i = 0; i < table.names.size(); ++i) {
        if (table.names[i] == name) {
            return i + 1;
        }
    }
    table.names.push_back(name);
    return table.names.size();
}

std::string backendName(nb::handle handle) {
    std::string_view text;
    if (readText(handle.ptr(), text, nullptr)) {
        return std::string(text);
    }
    if (!PyLong_Check(handle.ptr())) {
        throwTypeError(std::string("a backend is a name or a backend handle, not ") +
                       nb::type_name(handle.type()).c_str());
    }
    const unsigned long long number = PyLong_AsUnsignedLongLong(handle.ptr());
    PyErr_Clear();
    BackendTable& table = backendTable();
    const std::lock_guard lock(table.mutex);
    if (number == 0 || number > table.names.size()) {
        throw Error(Status::invalidParam("backend handle " + std::string(nb::str(handle).c_str()) +
                                         " is none that createBackend returned"));
    }
    return table.names[number - 1];
}

std::vector<std::string> backendNames(nb::handle sequence) {
    std::vector<std::string> names;
    if (sequence.is_none()) {
        return names;
    }
    if (PyTuple_CheckExact(sequence.ptr()) && PyTuple_Size(sequence.ptr()) == 0) {
        return names;
    }
    if (PyUnicode_Check(sequence.ptr()) || PyBytes_Check(sequence.ptr())) {
        throwTypeError("backends is a list of names or backend handles, not one name");
    }
    if (PySequence_Check(sequence.ptr()) == 0 && PyAnySet_Check(sequence.ptr()) == 0 &&
        PyIter_Check(sequence.ptr()) == 0) {
        throwTypeError(std::string("backends is a list of names or backend handles, not ") +
                       nb::type_name(sequence.type()).c_str());
    }
    for (const nb::handle item : sequence) {
        names.push_back(backendName(item));
    }
    return names;
}

}  // namespace nixl::python

NIXL_PYTHON_MODULE(_bindings, module) {
    nanobind::set_leak_warnings(false);
    static nixl::python::FirstImport first;
    if (first.repeat(module)) {
        nixl::python::repeatErrors();
        return;
    }
    module.doc() = "The raw interface of NIXL: classes and functions of the C++ library.";
    nixl::python::bindErrors(module);
    nixl::python::bindDescriptors(module);
    nixl::python::bindTransfers(module);
    nixl::python::bindAgent(module);
    nixl::python::bindHandles(module);
    nixl::python::bindMemory(module);
    nixl::python::bindKvJobs(module);
    nixl::python::bindDevice(module);
    module.attr("NIXL_INIT_AGENT") = "";
    module.attr("DEFAULT_COMM_PORT") = 8888;
    // Transfers that a GPU starts itself: see prep_mem_view.
    module.attr("HAVE_UCX_GPU_DEVICE_API") = false;
    module.attr("__version__") = nixl::version();
    first.keep(module);
}
