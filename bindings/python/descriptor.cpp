// include/nixl/descriptor.h for Python: nixl_mem_t and the three descriptor lists.
#include <utility>

#include <nanobind/operators.h>

#include <nixl/descriptor.h>

#include "module.h"

namespace nixl::python {
namespace {

// How the three lists differ; everything else is written once.
template <typename List>
struct Traits;

template <>
struct Traits<DescriptorList> {
    static size_t size(const DescriptorList& list) { return list.size(); }
    static MemType type(const DescriptorList& list) { return list.type(); }
    static void add(DescriptorList& list, nb::handle tuple) {
        const Descriptor read = readDescriptor(tuple, list.size());
        list.append(read.address, read.size, read.deviceId);
    }
    static void erase(DescriptorList& list, size_t at) { list.erase(at); }
    static void clear(DescriptorList& list) { list.clear(); }
    static nb::tuple get(const DescriptorList& list, size_t at) {
        const Descriptor entry = list.at(at);
        return nb::make_tuple(entry.address, entry.size, entry.deviceId);
    }
    static Descriptor read(nb::handle tuple, size_t at) { return readDescriptor(tuple, at); }
    static void set(DescriptorList& list, size_t at, const Descriptor& read) {
        DescriptorList changed(list.type());
        changed.reserve(list.size());
        for (size_t i = 0; i < list.size(); ++i) {
            const Descriptor entry = i == at ? read : list.at(i);
            changed.append(entry.address, entry.size, entry.deviceId);
        }
        changed.compress();
        list = std::move(changed);
    }
    static int64_t find(const DescriptorList& list, nb::handle tuple) {
        return list.find(readDescriptor(tuple, 0));
    }
    static bool equal(const DescriptorList& a, const DescriptorList& b) { return a == b; }
    static DescriptorList make(MemType type, nb::handle source) {
        return readDescriptors(type, source);
    }
};

template <>
struct Traits<RegList> {
    static size_t size(const RegList& list) { return list.list.size(); }
    static MemType type(const RegList& list) { return list.list.type(); }
    static void add(RegList& list, nb::handle tuple) {
        list.list.entries.push_back(readRegistration(tuple, list.list.size()));
    }
    static void erase(RegList& list, size_t at) {
        list.list.entries.erase(list.list.entries.begin() + static_cast<std::ptrdiff_t>(at));
    }
    static void clear(RegList& list) { list.list.entries.clear(); }
    static nb::tuple get(const RegList& list, size_t at) {
        const RegistrationList::Entry& entry = list.list.entries[at];
        return nb::make_tuple(entry.address, entry.size, entry.deviceId, toBytes(entry.metadata));
    }
    static RegistrationList::Entry read(nb::handle tuple, size_t at) {
        return readRegistration(tuple, at);
    }
    static void set(RegList& list, size_t at, RegistrationList::Entry read) {
        list.list.entries[at] = std::move(read);
    }
    static int64_t find(const RegList& list, nb::handle tuple) {
        const RegistrationList::Entry wanted = readRegistration(tuple, 0);
        for (size_t i = 0; i < list.list.size(); ++i) {
            if (list.list.entries[i] == wanted) {
                return static_cast<int64_t>(i);
            }
        }
        return -1;
    }
    static bool equal(const RegList& a, const RegList& b) { return a.list == b.list; }
    static RegList make(MemType type, nb::handle source) { return readRegistrations(type, source); }
};

template <>
struct Traits<RemoteList> {
    static size_t size(const RemoteList& list) { return list.entries.size(); }
    static MemType type(const RemoteList& list) { return list.type; }
    static void add(RemoteList& list, nb::handle tuple) {
        list.entries.push_back(readRemote(tuple, list.entries.size()));
    }
    static void erase(RemoteList& list, size_t at) {
        list.entries.erase(list.entries.begin() + static_cast<std::ptrdiff_t>(at));
    }
    static void clear(RemoteList& list) { list.entries.clear(); }
    static nb::tuple get(const RemoteList& list, size_t at) {
        const RemoteList::Entry& entry = list.entries[at];
        const Descriptor& d = entry.descriptor;
        return nb::make_tuple(d.address, d.size, d.deviceId, entry.agent);
    }
    static RemoteList::Entry read(nb::handle tuple, size_t at) { return readRemote(tuple, at); }
    static void set(RemoteList& list, size_t at, RemoteList::Entry read) {
        list.entries[at] = std::move(read);
    }
    static int64_t find(const RemoteList& list, nb::handle tuple) {
        const RemoteList::Entry wanted = readRemote(tuple, 0);
        for (size_t i = 0; i < list.entries.size(); ++i) {
            if (list.entries[i] == wanted) {
                return static_cast<int64_t>(i);
            }
        }
        return -1;
    }
    static bool equal(const RemoteList& a, const RemoteList& b) { return a == b; }
    static RemoteList make(MemType type, nb::handle source) { return readRemotes(type, source); }
};

template <typename List>
size_t position(const List& list, nb::handle number) {
    const int64_t index = readInteger(number, "the index of a descriptor");
    const auto size = static_cast<int64_t>(Traits<List>::size(list));
    const int64_t at = index < 0 ? index + size : index;
    if (at < 0 || at >= size) {
        const std::string text = "index " + std::to_string(index) + " of a list of " +
                                 std::to_string(size) + " descriptors";
        PyErr_SetString(PyExc_IndexError, text.c_str());
        throw nb::python_error();
    }
    return static_cast<size_t>(at);
}

template <typename List>
std::string describe(const List& list, const char* name, size_t most) {
    const size_t size = Traits<List>::size(list);
    std::string text = std::string(name) + "(" +
                       nb::borrow<nb::str>(typeName(Traits<List>::type(list))).c_str() + ", " +
                       std::to_string(size) + (size == 1 ? " descriptor" : " descriptors");
    for (size_t i = 0; i < size && i < most; ++i) {
        text += (i == 0 ? ": " : ", ");
        text += nb::repr(Traits<List>::get(list, i)).c_str();
    }
    return text + (size > most ? ", ...)" : ")");
}

template <typename List>
nb::class_<List> bindList(nb::module_& module, const char* name, const char* doc) {
    using T = Traits<List>;
    nb::class_<List> type(module, name, doc);
    type.def(
            "__init__",
            [](List* self, MemType mem, nb::handle descs, bool /*sorted*/) {
                new (self) List(T::make(mem, descs));
            },
            nb::arg("type"), nb::arg("descs"), nb::arg("sorted") = false)
        .def(
            "__init__",
            [](List* self, MemType mem, int64_t size) {
                new (self) List(T::make(mem, nb::int_(size)));
            },
            nb::arg("type"), nb::arg("init_size") = 0)
        .def("addDesc", &T::add, nb::arg("desc").none(), nb::lock_self())
        .def("append", &T::add, nb::arg("desc").none(), nb::lock_self())
        .def("clear", &T::clear, nb::lock_self())
        .def("descCount", &T::size, nb::lock_self())
        .def("getType", &T::type, nb::lock_self())
        .def(
            "isEmpty", [](const List& list) { return T::size(list) == 0; }, nb::lock_self())
        .def(
            "index",
            [name](const List& list, nb::handle desc) {
                const int64_t at = T::find(list, desc);
                if (at < 0) {
                    throw Error(Status::notFound(std::string(nb::repr(desc).c_str()) +
                                                 " is not in this " + name));
                }
                return at;
            },
            nb::arg("desc").none(), nb::lock_self())
        .def(
            "print",
            [name](const List& list) {
                nb::print(nb::str(describe(list, name, SIZE_MAX).c_str()));
            },
            nb::lock_self())
        .def(
            "remDesc", [](List& list, nb::handle index) { T::erase(list, position(list, index)); },
            nb::arg("index").none(), nb::lock_self())
        .def("__iter__", [](nb::handle self) { return nb::steal(PySeqIter_New(self.ptr())); })
        .def("__len__", &T::size, nb::lock_self())
        .def("__bool__", [](const List&) { return true; })
        .def(
            "__getitem__",
            [](const List& list, nb::handle index) { return T::get(list, position(list, index)); },
            nb::arg("index").none(), nb::lock_self())
        .def(
            "__setitem__",
            [](List& list, nb::handle index, nb::handle desc) {
                // Read first: that may run Python code, which may shorten the list.
                auto read = T::read(desc, position(list, index));
                T::set(list, position(list, index), std::move(read));
            },
            nb::arg("index").none(), nb::arg("desc").none(), nb::lock_self())
        .def(
            "__repr__", [name](const List& list) { return describe(list, name, 3); },
            nb::lock_self())
        .def("__eq__", &T::equal, nb::is_operator(), nb::lock_self(), nb::arg().lock())
        .def(
            "__ne__", [](const List& a, const List& b) { return !T::equal(a, b); },
            nb::is_operator(), nb::lock_self(), nb::arg().lock());
    type.attr("__hash__") = nb::none();
    return type;
}

nb::object fromBytes(Text bytes) {
    Result<DescriptorList> list = DescriptorList::deserialize(bytes.view);
    if (list.ok()) {
        return nb::cast(std::move(list).value());
    }
    if (list.status().code() == ErrorCode::MISMATCH) {
        Result<RegistrationList> registrations = RegistrationList::deserialize(bytes.view);
        if (registrations.ok()) {
            return nb::cast(RegList{std::move(registrations).value(), {}});
        }
        throw Error(registrations.status());
    }
    throw Error(list.status());
}

void bindRegistrations(nb::class_<RegList>& type) {
    type.def("trim", [](const RegList& list) { return list.list.trim(); })
        .def("serialize", [](const RegList& list) { return toBytes(list.list.serialize()); })
        .def("__getstate__", [](const RegList& list) { return toBytes(list.list.serialize()); })
        .def("__setstate__",
             [](RegList& list, Text state) {
                 Result<RegistrationList> read = RegistrationList::deserialize(state.view);
                 if (!read.ok()) {
                     throw Error(read.status());
                 }
                 new (&list) RegList{std::move(read).value(), {}};
             })
        .def_prop_ro("_registered",
                     [](const RegList& list) { return list.registration.is_valid(); })
        .def("_bindRegistration",
             [](RegList& list, nb::object registration) {
                 list.registration = std::move(registration);
             })
        .def("_takeRegistration", [](RegList& list) -> nb::object {
            if (!list.registration.is_valid()) {
                return nb::none();
            }
            return std::exchange(list.registration, nb::object());
        });
}

}  // namespace

nb::object typeName(MemType type) {
    static constexpr const char* kNames[] = {"DRAM_SEG", "VRAM_SEG", "BLK_SEG", "OBJ_SEG",
                                             "FILE_SEG"};
    return nb::str(kNames[static_cast<size_t>(type)]);
}

void bindDescriptors(nb::module_& module) {
    nb::enum_<MemType>(module, "nixl_mem_t", nb::is_arithmetic(), "Kinds of memory and storage.")
        .value("DRAM_SEG", MemType::DRAM)
        .value("VRAM_SEG", MemType::VRAM)
        .value("BLK_SEG", MemType::BLOCK)
        .value("OBJ_SEG", MemType::OBJECT)
        .value("FILE_SEG", MemType::FILE)
        .export_values();
    module.def("_listFromBytes", &fromBytes, nb::arg("data"));

    auto transfers = bindList<DescriptorList>(
        module, "nixlXferDList",
        "Descriptors of one side of a transfer: (address, length, device).");
    transfers.def("serialize", [](const DescriptorList& list) { return toBytes(list.serialize()); })
        .def("__getstate__", [](const DescriptorList& list) { return toBytes(list.serialize()); })
        .def("__setstate__", [](DescriptorList& list, Text state) {
            Result<DescriptorList> read = DescriptorList::deserialize(state.view);
            if (!read.ok()) {
                throw Error(read.status());
            }
            new (&list) DescriptorList(std::move(read).value());
        });
    auto registrations = bindList<RegList>(
        module, "nixlRegDList", "Memory to register: (address, length, device, metadata).");
    bindRegistrations(registrations);
    auto remotes =
        bindList<RemoteList>(module, "nixlRemoteDList",
                             "Descriptors with their agents: (address, length, device, agent).");
    remotes.def("__reduce__", [](nb::handle self) {
        const auto& list = nb::cast<const RemoteList&>(self);
        nb::list entries;
        for (size_t i = 0; i < list.entries.size(); ++i) {
            entries.append(Traits<RemoteList>::get(list, i));
        }
        return nb::make_tuple(self.type(), nb::make_tuple(list.type, entries));
    });
}

}  // namespace nixl::python
