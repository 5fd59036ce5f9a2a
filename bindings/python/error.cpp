// include/nixl/error.h for Python: the status enum, and nixl::Error as the exception class of its
// code (the classes are in nixl/errors.py).
#include <nixl/error.h>

#include "module.h"
#include "once.h"

namespace nixl::python {
namespace {

// Exception classes by negated code; filled when the module is imported, never freed.
PyObject* classes[14] = {};
FirstImport errors_module;

void translate(const std::exception_ptr& pointer, void* /*payload*/) {
    try {
        std::rethrow_exception(pointer);
    } catch (const Error& error) {
        raiseError(error);
    }
}

}  // namespace

// Made without running Python code: a thread that the ending interpreter stops there would unwind
// through the binding. So `__new__` alone runs, and the attributes are set here.
nb::object makeError(const Error& error) {
    const int code = -static_cast<int>(error.code());
    const bool known = code > 0 && code < static_cast<int>(std::size(classes));
    PyObject* type = classes[known ? code : 8];
    const auto create =
        reinterpret_cast<newfunc>(PyType_GetSlot(reinterpret_cast<PyTypeObject*>(type), Py_tp_new));
    const nb::tuple args = nb::make_tuple(toShown(error.what()));
    nb::object made = nb::steal(create(reinterpret_cast<PyTypeObject*>(type), args.ptr(), nullptr));
    if (!made.is_valid()) {
        throw nb::python_error();
    }
    made.attr("args") = args;  // those that are OSErrors too leave that to __init__
    made.attr("agent") = toShown(error.agent());
    made.attr("peer") = toShown(error.peer());
    made.attr("backend") = toShown(error.backend());
    made.attr("descriptor_index") = error.descriptorIndex();
    made.attr("errno") = error.systemErrno();
    return made;
}

void raiseError(const Error& error) {
    const nb::object exception = makeError(error);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
}

void bindErrors(nb::module_& module) {
    using enum StatusValue;
    nb::enum_<StatusValue>(module, "nixl_status_t", nb::is_arithmetic(),
                           "What a raw call returned.")
        .value("NIXL_IN_PROG", IN_PROG)
        .value("NIXL_SUCCESS", SUCCESS)
        .value("NIXL_ERR_NOT_POSTED", NOT_POSTED)
        .value("NIXL_ERR_INVALID_PARAM", INVALID_PARAM)
        .value("NIXL_ERR_BACKEND", BACKEND)
        .value("NIXL_ERR_NOT_FOUND", NOT_FOUND)
        .value("NIXL_ERR_MISMATCH", MISMATCH)
        .value("NIXL_ERR_NOT_ALLOWED", NOT_ALLOWED)
        .value("NIXL_ERR_REPOST_ACTIVE", REPOST_ACTIVE)
        .value("NIXL_ERR_UNKNOWN", UNKNOWN)
        .value("NIXL_ERR_NOT_SUPPORTED", NOT_SUPPORTED)
        .value("NIXL_ERR_REMOTE_DISCONNECT", REMOTE_DISCONNECT)
        .value("NIXL_ERR_CANCELED", CANCELED)
        .value("NIXL_ERR_NO_TELEMETRY", NO_TELEMETRY)
        .value("NIXL_ERR_TIMEOUT", TIMEOUT)
        .export_values();

    const nb::module_ errors = nb::module_::import_("nixl.errors");
    const nb::list ordered = nb::borrow<nb::list>(errors.attr("BY_CODE"));
    for (size_t i = 0; i < ordered.size(); ++i) {
        const nb::object type = ordered[i];
        module.attr(nb::str(type.attr("__name__"))) = type;
        classes[i + 1] = nb::object(type).release().ptr();
    }
    module.attr("nixlError") = errors.attr("nixlError");
    nb::register_exception_translator(translate);
    errors_module.keep(errors);
}

void repeatErrors() {
    errors_module.repeat(nb::module_::import_("nixl.errors"));
}

}  // namespace nixl::python
