// Reads descriptor lists out of Python objects: sequences of tuples and two-dimensional integer
// arrays, in one pass and without an object per descriptor. Called with the GIL held.
#include <nanobind/ndarray.h>

#include "module.h"

namespace nixl::python {
namespace {

using AnyArray = nb::ndarray<nb::ro>;

constexpr const char* kFields[] = {"address", "length", "device id"};

std::string typeOf(nb::handle value) {
    return nb::type_name(value.type()).c_str();
}

std::string shown(nb::handle value) {
    std::string text = nb::repr(value).c_str();
    if (text.size() > 80) {
        text.resize(77);
        text += "...";
    }
    return text;
}

// The rare cases: integers of another type (numpy.uint64), and everything that is an error.
uint64_t readOddNumber(PyObject* value, size_t row, size_t field) {
    PyErr_Clear();
    if (!PyIndex_Check(value)) {
        throwTypeError("descriptor " + std::to_string(row) + ": the " + kFields[field] +
                       " must be an integer, not " + typeOf(value));
    }
    const nb::object number = nb::steal(PyNumber_Index(value));
    if (!number.is_valid()) {
        throw nb::python_error();
    }
    const unsigned long long read = PyLong_AsUnsignedLongLong(number.ptr());
    if (read == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw Error(Status::invalidParam("descriptor " + std::to_string(row) + ": the " +
                                             kFields[field] + " " + shown(value) +
                                             " is not within 0 … 2^64-1",
                                         static_cast<int64_t>(row)));
    }
    return read;
}

inline uint64_t readNumber(PyObject* value, size_t row, size_t field) {
    if (PyLong_CheckExact(value)) {
        const unsigned long long read = PyLong_AsUnsignedLongLong(value);
        if (read != static_cast<unsigned long long>(-1) || PyErr_Occurred() == nullptr) {
            return read;
        }
    }
    return readOddNumber(value, row, field);
}

[[noreturn]] void throwNoTuple(nb::handle entry, size_t row, const char* wanted) {
    const std::string where = "descriptor " + std::to_string(row) + ": expected " + wanted;
    if (PyTuple_Check(entry.ptr()) || PyList_Check(entry.ptr())) {
        throw Error(
            Status::invalidParam(where + ", not " + shown(entry), static_cast<int64_t>(row)));
    }
    throwTypeError(where + ", not " + typeOf(entry));
}

// Calls `each(entry, row)` for every entry of a list or tuple. An entry is held meanwhile: its
// numbers may run Python code, which may take it out of the list.
template <typename Each>
void forEntries(nb::handle source, const Each& each) {
    const size_t size = sequenceSize(source);
    for (size_t i = 0; i < size; ++i) {
        const nb::object entry = sequenceItem(source, i, size, "descriptors");
        each(entry.ptr(), i);
    }
}

bool isSequence(nb::handle source) {
    return PyList_Check(source.ptr()) || PyTuple_Check(source.ptr());
}

std::string readMeta(PyObject* value, size_t row, const char* what) {
    std::string_view text;
    if (readText(value, text, nullptr)) {
        return std::string(text);
    }
    if (PyUnicode_Check(value)) {  // a path as os.fsdecode gives it
        return readName(value, "descriptor " + std::to_string(row) + ": the " + what);
    }
    throwTypeError("descriptor " + std::to_string(row) + ": the " + what +
                   " must be str or bytes, not " + typeOf(value));
}

// A tuple whose first three items are address, length and device.
Descriptor readThree(PyObject* tuple, size_t row) {
    return {readNumber(PyTuple_GetItem(tuple, 0), row, 0),
            readNumber(PyTuple_GetItem(tuple, 1), row, 1),
            readNumber(PyTuple_GetItem(tuple, 2), row, 2)};
}

template <typename T>
void copyRows(const AnyArray& array, size_t rows, size_t columns, std::vector<uint64_t>& out) {
    const auto* data = static_cast<const T*>(array.data());
    for (size_t row = 0; row < rows; ++row) {
        for (size_t column = 0; column < columns; ++column) {
            const T value = data[static_cast<int64_t>(row) * array.stride(0) +
                                 static_cast<int64_t>(column) * array.stride(1)];
            if constexpr (std::is_signed_v<T>) {
                // Addresses may have bit 63 set, strides may be negative; the rest may not.
                if (value < 0 && column != 0 && column != 3) {
                    throw Error(Status::invalidParam("descriptor " + std::to_string(row) +
                                                         ": column " + std::to_string(column) +
                                                         " is negative: " + std::to_string(value),
                                                     static_cast<int64_t>(row)));
                }
            }
            out[row * columns + column] = static_cast<uint64_t>(value);
        }
    }
}

bool isCompact(const AnyArray& array, size_t columns) {
    return array.stride(1) == 1 &&
           (array.shape(0) <= 1 || array.stride(0) == static_cast<int64_t>(columns));
}

DescriptorList readRows(MemType type, const AnyArray& array, size_t columns) {
    const size_t rows = array.shape(0);
    const auto take = [&](const uint64_t* data) {
        Result<DescriptorList> list = DescriptorList::fromRows(type, data, rows, columns);
        if (!list.ok()) {
            throw Error(list.status());
        }
        return std::move(list).value();
    };
    if (array.dtype() == nb::dtype<uint64_t>() && isCompact(array, columns)) {
        const auto* data = static_cast<const uint64_t*>(array.data());
        const GilRelease release;
        return take(data);
    }
    std::vector<uint64_t> copy(rows * columns);
    if (array.dtype() == nb::dtype<uint64_t>()) {
        copyRows<uint64_t>(array, rows, columns, copy);
    } else if (array.dtype() == nb::dtype<int64_t>()) {
        copyRows<int64_t>(array, rows, columns, copy);
    } else if (array.dtype() == nb::dtype<uint32_t>()) {
        copyRows<uint32_t>(array, rows, columns, copy);
    } else if (array.dtype() == nb::dtype<int32_t>()) {
        copyRows<int32_t>(array, rows, columns, copy);
    } else {
        throw Error(Status::invalidParam(
            "an array of descriptors must hold 64- or 32-bit integers (uint64, int64, …)"));
    }
    return take(copy.data());
}

// `init_size` of the list constructors: that many empty descriptors.
size_t readCount(nb::handle source) {
    const size_t count = PyLong_AsSize_t(source.ptr());
    if (count == static_cast<size_t>(-1) && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw Error(Status::invalidParam("init_size " + shown(source) + " is not a valid count"));
    }
    return count;
}

[[noreturn]] void throwNoList(nb::handle source, const char* tuples) {
    throwTypeError(std::string("descriptors come as a list of ") + tuples +
                   " or as an Nx3 integer array, not " + typeOf(source));
}

}  // namespace

Descriptor readDescriptor(nb::handle tuple, size_t row) {
    if (!PyTuple_Check(tuple.ptr()) || PyTuple_Size(tuple.ptr()) != 3) {
        throwNoTuple(tuple, row, "a tuple (address, length, device id)");
    }
    return readThree(tuple.ptr(), row);
}

RegistrationList::Entry readRegistration(nb::handle tuple, size_t row) {
    const Py_ssize_t size = PyTuple_Check(tuple.ptr()) ? PyTuple_Size(tuple.ptr()) : 0;
    if (size != 3 && size != 4) {
        throwNoTuple(tuple, row, "a tuple (address, length, device id[, metadata])");
    }
    const Descriptor three = readThree(tuple.ptr(), row);
    RegistrationList::Entry entry{three.address, three.size, three.deviceId, {}};
    if (size == 4) {
        entry.metadata = readMeta(PyTuple_GetItem(tuple.ptr(), 3), row, "metadata");
    }
    return entry;
}

RemoteList::Entry readRemote(nb::handle tuple, size_t row) {
    if (!PyTuple_Check(tuple.ptr()) || PyTuple_Size(tuple.ptr()) != 4) {
        throwNoTuple(tuple, row, "a tuple (address, length, device id, agent name)");
    }
    return {readThree(tuple.ptr(), row),
            readMeta(PyTuple_GetItem(tuple.ptr(), 3), row, "agent name")};
}

std::optional<DescriptorList> readArray(MemType type, nb::handle source, bool strided) {
    AnyArray array;
    if (isSequence(source) || PyLong_Check(source.ptr()) ||
        !nb::try_cast<AnyArray>(source, array, false)) {
        return std::nullopt;
    }
    const bool fits =
        array.ndim() == 2 && (array.shape(1) == 3 || (strided && array.shape(1) == 5));
    if (!fits) {
        std::string shape;
        for (size_t i = 0; i < array.ndim(); ++i) {
            shape += (i == 0 ? "" : " x ") + std::to_string(array.shape(i));
        }
        throw Error(Status::invalidParam(
            std::string("an array of descriptors must be N x 3 (address, length, device id)") +
            (strided ? " or N x 5 (… stride, count)" : "") + ", not " + shape));
    }
    if (array.device_type() != nb::device::cpu::value) {
        throw Error(Status::invalidParam("an array of descriptors must be in host memory"));
    }
    return readRows(type, array, array.shape(1));
}

DescriptorList readDescriptors(MemType type, nb::handle source) {
    if (PyLong_Check(source.ptr())) {
        DescriptorList list(type);
        list.appendRun({0, 0, 0, 0, readCount(source)});
        return list;
    }
    if (std::optional<DescriptorList> list = readArray(type, source, false)) {
        return std::move(*list);
    }
    if (!isSequence(source)) {
        throwNoList(source, "tuples (address, length, device id)");
    }
    DescriptorList list(type);
    list.reserve(static_cast<size_t>(PyObject_Size(source.ptr())));
    forEntries(source, [&](PyObject* entry, size_t row) {
        const Descriptor read = readDescriptor(entry, row);
        list.append(read.address, read.size, read.deviceId);
    });
    list.compress();
    return list;
}

RegList readRegistrations(MemType type, nb::handle source) {
    RegList out{RegistrationList(type), {}};
    std::vector<RegistrationList::Entry>& entries = out.list.entries;
    if (PyLong_Check(source.ptr())) {
        entries.resize(readCount(source));
        return out;
    }
    if (const std::optional<DescriptorList> list = readArray(type, source, false)) {
        entries.reserve(list->size());
        for (size_t i = 0; i < list->size(); ++i) {
            const Descriptor entry = list->at(i);
            entries.push_back({entry.address, entry.size, entry.deviceId, {}});
        }
        return out;
    }
    if (!isSequence(source)) {
        throwNoList(source, "tuples (address, length, device id, metadata)");
    }
    entries.reserve(static_cast<size_t>(PyObject_Size(source.ptr())));
    forEntries(source, [&](PyObject* entry, size_t row) {
        entries.push_back(readRegistration(entry, row));
    });
    return out;
}

RemoteList readRemotes(MemType type, nb::handle source) {
    RemoteList out{type, {}};
    if (PyLong_Check(source.ptr())) {
        out.entries.resize(readCount(source));
        return out;
    }
    if (!isSequence(source)) {
        throwNoList(source, "tuples (address, length, device id, agent name)");
    }
    out.entries.reserve(static_cast<size_t>(PyObject_Size(source.ptr())));
    forEntries(source,
               [&](PyObject* entry, size_t row) { out.entries.push_back(readRemote(entry, row)); });
    return out;
}

}  // namespace nixl::python
