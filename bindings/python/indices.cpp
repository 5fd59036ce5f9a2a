// See indices.h.
#include "indices.h"

#include <algorithm>

#include "small_arrays.h"

namespace nixl::python {
namespace {

int64_t readOne(nb::handle item, size_t at, const char* side) {
    long long value = -1;
    if (PyLong_CheckExact(item.ptr())) {
        value = PyLong_AsLongLong(item.ptr());
    } else if (PyIndex_Check(item.ptr())) {
        const nb::object number = nb::steal(PyNumber_Index(item.ptr()));
        if (!number.is_valid()) {
            throw nb::python_error();
        }
        value = PyLong_AsLongLong(number.ptr());
    } else {
        throwTypeError(std::string(side) + " index " + std::to_string(at) +
                       ": expected an integer, not " + nb::type_name(item.type()).c_str());
    }
    if (value == -1 && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw Error(Status::invalidParam(std::string(side) + " index " + std::to_string(at) +
                                         ": does not fit 64 bits"));
    }
    return value;
}

}  // namespace

Indices::Indices(nb::handle source, const char* side) {
    if (PyList_Check(source.ptr()) || PyTuple_Check(source.ptr())) {
        readSequence(source, side);
    } else if (const int few = readSmallArray(source, few_, kFew); few >= 0) {
        size_ = static_cast<size_t>(few);
        wide_ = few_;
    } else if (readBuffer(source)) {
        return;
    } else if (nb::try_cast<AnyArray>(source, array_, false)) {
        readArray(side);
    } else if (PySequence_Check(source.ptr()) != 0 && !PyUnicode_Check(source.ptr()) &&
               !PyBytes_Check(source.ptr())) {
        const nb::object list = nb::steal(PySequence_List(source.ptr()));
        if (!list.is_valid()) {
            throw nb::python_error();
        }
        readSequence(list, side);
    } else {
        throwTypeError(std::string(side) + " indices: expected a list or an integer array, not " +
                       nb::type_name(source.type()).c_str());
    }
}

Indices::~Indices() {
    if (buffer_.obj != nullptr) {
        PyBuffer_Release(&buffer_);
    }
}

// The common case, an array of int32 or int64 without gaps, without the cost of a general array.
bool Indices::readBuffer(nb::handle source) {
    if (PyObject_CheckBuffer(source.ptr()) == 0) {
        return false;
    }
    if (PyObject_GetBuffer(source.ptr(), &buffer_, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
        PyErr_Clear();
        buffer_.obj = nullptr;
        return false;
    }
    const std::string_view format = buffer_.format == nullptr ? "B" : buffer_.format;
    const bool narrow = buffer_.itemsize == 4 && (format == "i" || format == "l");
    const bool wide = buffer_.itemsize == 8 && (format == "l" || format == "q");
    if (buffer_.ndim != 1 || !(narrow || wide) ||
        (buffer_.shape[0] > 1 && buffer_.strides[0] != buffer_.itemsize)) {
        PyBuffer_Release(&buffer_);  // which sets obj to null
        return false;
    }
    size_ = static_cast<size_t>(buffer_.shape[0]);
    if (narrow) {
        narrow_ = static_cast<const int32_t*>(buffer_.buf);
    } else {
        wide_ = static_cast<const int64_t*>(buffer_.buf);
    }
    return true;
}

std::span<const int64_t> Indices::wideSpan() {
    if (narrow_ != nullptr && wide_ == nullptr) {
        std::copy_n(narrow_, size_, place(size_));
    }
    return {wide_, size_};
}

int64_t* Indices::place(size_t count) {
    if (count <= kFew) {
        wide_ = few_;
        return few_;
    }
    copy_.resize(count);
    wide_ = copy_.data();
    return copy_.data();
}

void Indices::readSequence(nb::handle source, const char* side) {
    size_ = sequenceSize(source);
    int64_t* const out = place(size_);
    for (size_t i = 0; i < size_; ++i) {
        // Held: reading a number may run Python code, which may take it out of the list.
        const nb::object item = sequenceItem(source, i, size_, side);
        out[i] = readOne(item, i, side);
    }
}

void Indices::readArray(const char* side) {
    if (array_.ndim() != 1 || array_.device_type() != nb::device::cpu::value) {
        throw Error(Status::invalidParam(
            std::string(side) + " indices: the array must have one dimension, in host memory"));
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
                                         " indices: the array must hold integers; of a mask, give "
                                         "the indices it selects"));
    }
}

template <typename T>
bool Indices::copyAs() {
    if (array_.dtype() != nb::dtype<T>()) {
        return false;
    }
    const auto* data = static_cast<const T*>(array_.data());
    int64_t* const out = place(size_);
    for (size_t i = 0; i < size_; ++i) {
        // A number, not a character, whatever its width.
        // NOLINTNEXTLINE(bugprone-signed-char-misuse)
        out[i] = static_cast<int64_t>(data[static_cast<int64_t>(i) * array_.stride(0)]);
    }
    return true;
}

}  // namespace nixl::python
