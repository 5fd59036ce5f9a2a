// include/nixl/metadata_store.h for Python: the library calls an object of nixl/store.py.
#include <nixl/metadata_store.h>

#include "module.h"

namespace nixl::python {
namespace {

// Called without the GIL, on a thread of the library.
class PythonStore final : public FrameworkStore {
  public:
    explicit PythonStore(nb::object store) : store_(store.release().ptr()) {}
    ~PythonStore() override {
        // The object of an ending interpreter is left to it.
        if (Py_IsInitialized() != 0) {
            const GilAcquire gil;
            Py_DECREF(store_);
        }
    }
    PythonStore(const PythonStore&) = delete;
    PythonStore& operator=(const PythonStore&) = delete;

    std::string describe() const override {
        std::string text = "metadata_store";
        static_cast<void>(call([&](nb::handle store) {
                              text = nb::cast<std::string>(store.attr("describe")());
                          }).ok());
        return text;
    }
    Status set(const std::string& key, const std::string& value) override {
        return call([&](nb::handle store) { store.attr("set")(toStr(key), toBytes(value)); });
    }
    Result<std::optional<std::string>> get(const std::string& key) override {
        std::optional<std::string> value;
        const Status status = call([&](nb::handle store) {
            const nb::object found = store.attr("get")(toStr(key));
            if (!found.is_none()) {
                const auto bytes = nb::cast<nb::bytes>(found);
                value.emplace(bytes.c_str(), bytes.size());
            }
        });
        if (!status.ok()) {
            return status;
        }
        return value;
    }
    Status remove(const std::string& key) override {
        return call([&](nb::handle store) { store.attr("remove")(toStr(key)); });
    }

  private:
    static nb::str toStr(const std::string& text) { return nb::str(text.data(), text.size()); }

    template <typename Call>
    Status call(const Call& what) const {
        const GilAcquire gil;
        try {
            what(nb::handle(store_));
            return {};
        } catch (nb::python_error& error) {
            const std::string kind = nb::cast<std::string>(error.type().attr("__name__"));
            const std::string text = nb::cast<std::string>(nb::str(error.value()));
            return Status::backend(text.empty() ? kind : kind + ": " + text);
        } catch (const std::exception& error) {
            return Status::backend(error.what());
        }
    }

    PyObject* const store_;
};

}  // namespace

std::shared_ptr<FrameworkStore> makePythonStore(nb::object store) {
    return std::make_shared<PythonStore>(std::move(store));
}

}  // namespace nixl::python
