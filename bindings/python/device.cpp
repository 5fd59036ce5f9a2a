// GPU memory of our own, and what the CUDA driver says: what nixl.alloc(device=) and the doctor
// use.
#include "nixl/device.h"

#include "module.h"

namespace nixl::python {
namespace {

// An allocation that goes with the object, or earlier by free().
struct Allocation {
    std::unique_ptr<DeviceMemory> memory;
    const DeviceMemory& get() const {
        if (memory == nullptr) {
            throw Error(Status::invalidParam("this GPU memory has been freed"));
        }
        return *memory;
    }
};

template <typename T>
T take(Result<T> result) {
    if (!result.ok()) {
        throw Error(result.status());
    }
    return std::move(result).value();
}

nb::dict describe(const DeviceInfo& info) {
    nb::dict entry;
    entry["id"] = info.id;
    entry["name"] = info.name;
    entry["bytes"] = info.bytes;
    entry["pci"] = info.pciAddress;
    return entry;
}

nb::dict status() {
    Status why;
    int version = 0;
    std::vector<DeviceInfo> all;
    {
        const GilRelease release;
        why = devices().available();
        if (why.ok()) {
            version = take(devices().driverVersion());
            all = take(devices().list());
        }
    }
    nb::dict answer;
    answer["error"] = why.message();
    answer["version"] = version;
    nb::list gpus;
    for (const DeviceInfo& one : all) {
        gpus.append(describe(one));
    }
    answer["devices"] = gpus;
    return answer;
}

}  // namespace

void bindDevice(nb::module_& module) {
    nb::class_<Allocation>(module, "_deviceMemory")
        .def_prop_ro("address", [](const Allocation& self) { return self.get().address(); })
        .def_prop_ro("device", [](const Allocation& self) { return self.get().device(); })
        .def_prop_ro("freed", [](const Allocation& self) { return self.memory == nullptr; })
        .def("free", [](Allocation& self) { self.memory.reset(); });
    module.def(
        "_deviceAlloc",
        [](uint64_t size, int device) {
            const GilRelease release;
            return Allocation{take(devices().allocate(device, size))};
        },
        nb::arg("size"), nb::arg("device"));
    // The GPU that holds an address, or -1; -1 also where there is no driver.
    module.def(
        "_deviceOf",
        [](uint64_t address) {
            const GilRelease release;
            if (!devices().likely()) {
                return -1;
            }
            const Result<DeviceRange> range = devices().find(address);
            return range.ok() ? range.value().device : -1;
        },
        nb::arg("address"));
    module.def("_deviceStatus", &status);
}

}  // namespace nixl::python
