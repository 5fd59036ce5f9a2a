// Plain memory for tests and examples: what nixl._utils offers, and the range of a buffer.
#include <cstdlib>
#include <cstring>

#include "module.h"

namespace nixl::python {
namespace {

void* pointer(uint64_t address, size_t size, const char* what) {
    if (address == 0 && size > 0) {
        throw Error(Status::invalidParam(std::string(what) + " is a null address"));
    }
    return reinterpret_cast<void*>(address);
}

uint64_t mallocPassthru(int64_t size) {
    if (size < 0) {
        throw Error(Status::invalidParam("size " + std::to_string(size) + " is negative"));
    }
    void* memory = std::malloc(size == 0 ? 1 : static_cast<size_t>(size));
    if (memory == nullptr) {
        PyErr_NoMemory();
        throw nb::python_error();
    }
    return reinterpret_cast<uint64_t>(memory);
}

void verifyTransfer(uint64_t source, uint64_t target, size_t size) {
    const auto* left = static_cast<const unsigned char*>(pointer(source, size, "the source"));
    const auto* right = static_cast<const unsigned char*>(pointer(target, size, "the target"));
    const GilRelease release;
    if (size == 0 || std::memcmp(left, right, size) == 0) {
        return;
    }
    size_t at = 0;
    while (left[at] == right[at]) {
        ++at;
    }
    char bytes[48];
    std::snprintf(bytes, sizeof(bytes), "0x%02x, but 0x%02x", left[at], right[at]);
    throw Error(Status::mismatch("byte " + std::to_string(at) + " of " + std::to_string(size) +
                                 " differs: the source has " + bytes + " arrived"));
}

// The address and size of a writable contiguous buffer (bytearray, mmap, memoryview, …).
nb::object bufferRange(nb::handle object, bool writable) {
    Py_buffer view;
    const int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view, flags) != 0) {
        throw nb::python_error();
    }
    const auto address = reinterpret_cast<uint64_t>(view.buf);
    const auto size = static_cast<uint64_t>(view.len);
    PyBuffer_Release(&view);
    return nb::make_tuple(address, size);
}

}  // namespace

void bindMemory(nb::module_& module) {
    module.def("_mallocPassthru", &mallocPassthru, nb::arg("size"));
    module.def(
        "_freePassthru", [](uint64_t address) { std::free(reinterpret_cast<void*>(address)); },
        nb::arg("address"));
    module.def(
        "_baBuf",
        [](uint64_t address, size_t size) {
            void* memory = pointer(address, size, "the buffer");
            const GilRelease release;
            std::memset(memory, 0xba, size);
        },
        nb::arg("address"), nb::arg("size"));
    module.def("_verifyTransfer", &verifyTransfer, nb::arg("src"), nb::arg("dst"), nb::arg("size"));
    module.def("_bufferRange", &bufferRange, nb::arg("object"), nb::arg("writable"));
}

}  // namespace nixl::python
