// A native module of the package is filled once in a process, in its main interpreter: its classes
// are nanobind's, which knows one of each. Called with the GIL held.
#pragma once

#include <string_view>

#include <nanobind/nanobind.h>

namespace nixl::python {

// Whether this is the main interpreter; if not, raises an ImportError. Asked before nanobind is,
// which would forget the main interpreter's classes.
inline bool inMainInterpreter(const char* name) noexcept {
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) {
        return true;
    }
    PyErr_Format(PyExc_ImportError,
                 "nixl.%s works in the main interpreter of a process, not in a subinterpreter: use"
                 " threads or processes",
                 name);
    return false;
}

// A module whose content later imports take over: Python makes a new module where the entry in
// sys.modules was removed, as unittest.mock.patch.dict does. Kept until the process ends.
class FirstImport {
  public:
    // Gives `module` what the first one has, but for what the import system sets; false where
    // `module` is the first itself: then fill it and `keep` it.
    bool repeat(const nanobind::module_& module) const {
        if (!first_.is_valid()) {
            return false;
        }
        const nanobind::object names = first_.attr("__dict__");
        for (const auto& [name, value] : nanobind::borrow<nanobind::dict>(names)) {
            const std::string_view text = nanobind::borrow<nanobind::str>(name).c_str();
            if (!text.starts_with("__") || text == "__doc__" || text == "__version__") {
                module.attr(name) = value;
            }
        }
        return true;
    }
    void keep(const nanobind::module_& module) { first_ = nanobind::borrow(module).release(); }

  private:
    nanobind::handle first_;
};

}  // namespace nixl::python

// NB_MODULE, but for the main interpreter alone; `name` starts with "_".
#define NIXL_PYTHON_MODULE(name, variable)                                                \
    extern "C" PyObject* PyInit_##name##_main(void);                                      \
    extern "C" NB_EXPORT PyObject* PyInit_##name(void);                                   \
    extern "C" PyObject* PyInit_##name(void) {                                            \
        return nixl::python::inMainInterpreter(#name) ? PyInit_##name##_main() : nullptr; \
    }                                                                                     \
    NB_MODULE(name##_main, variable)
