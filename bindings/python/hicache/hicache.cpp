// nixl._hicache: the packed store of HiCache for Python. A batch is one object, arrays cross as
// NumPy arrays, the GIL is released in all that touches files or payload. See hicache/store.h.
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "../gil.h"
#include "../once.h"
#include "hicache/checksums.h"
#include "hicache/payload.h"
#include "hicache/store.h"

namespace nb = nanobind;
using nixl::Status;
using nixl::hicache::Batch;
using nixl::hicache::Item;
using nixl::hicache::ItemState;
using nixl::hicache::Part;
using nixl::hicache::Row;
using nixl::hicache::Store;
using nixl::hicache::StoreOptions;

namespace {

using Rows = nb::ndarray<const uint64_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Lengths = nb::ndarray<const uint64_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;

// OSError with the errno where the system refused, so that Python can tell a full disk.
void raise(const Status& status) {
    if (status.ok()) {
        return;
    }
    if (status.systemErrno() != 0) {
        nb::object error = nb::module_::import_("builtins")
                               .attr("OSError")(status.systemErrno(), status.message());
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        throw nb::python_error();
    }
    if (status.code() == nixl::ErrorCode::INVALID_PARAM) {
        throw std::invalid_argument(status.message());
    }
    throw std::runtime_error(status.message());
}

// A batch belongs to the store it came from and gives its extents back when it is dropped.
class PyBatch {
  public:
    explicit PyBatch(std::shared_ptr<Store> store) : store_(std::move(store)) {}
    ~PyBatch() { store_->abandon(batch); }
    PyBatch(const PyBatch&) = delete;
    PyBatch& operator=(const PyBatch&) = delete;

    Batch batch;

  private:
    std::shared_ptr<Store> store_;
};

class PyStore {
  public:
    PyStore(std::vector<std::string> directories,
            uint64_t segment_bytes,
            uint64_t max_bytes,
            bool durable,
            bool read_only,
            bool segment_per_batch,
            bool external_segments,
            unsigned file_mode) {
        StoreOptions options;
        options.directories = std::move(directories);
        options.directory.segmentBytes = segment_bytes;
        options.directory.maxBytes = max_bytes;
        options.directory.durable = durable;
        options.directory.readOnly = read_only;
        options.directory.segmentPerBatch = segment_per_batch;
        options.directory.externalSegments = external_segments;
        options.directory.fileMode = file_mode;
        Status status;
        {
            const nixl::python::GilRelease release;
            auto opened = Store::open(options);
            if (opened.ok()) {
                store_ = std::move(opened).value();
            } else {
                status = opened.status();
            }
        }
        raise(status);
    }

    std::unique_ptr<PyBatch> find(const nb::list& keys, const std::string& suffix) {
        auto out = makeBatch(keys, suffix, false);
        call([&] { return store_->find(out->batch); });
        return out;
    }

    size_t containsPrefix(const nb::list& keys, const std::string& suffix) {
        auto out = makeBatch(keys, suffix, false);
        size_t count = 0;
        call([&] {
            auto found = store_->containsPrefix(out->batch);
            count = found.ok() ? found.value() : 0;
            return found.ok() ? Status() : found.status();
        });
        return count;
    }

    std::pair<std::unique_ptr<PyBatch>, std::string> reserve(const nb::list& keys,
                                                             const std::string& suffix,
                                                             const Lengths& lengths,
                                                             bool replace,
                                                             const std::string& owner) {
        if (!suffix.starts_with(owner)) {
            throw std::invalid_argument("reserve: the suffix \"" + suffix +
                                        "\" does not begin with its owner \"" + owner + "\"");
        }
        const auto scope = nixl::hicache::scopeOf(suffix.size(), owner.size());
        auto out = makeBatch(keys, suffix, true, scope);
        if (lengths.shape(0) != out->batch.items.size()) {
            throw std::invalid_argument("reserve: one length for each key is needed");
        }
        for (size_t i = 0; i < out->batch.items.size(); ++i) {
            out->batch.items[i].length = lengths(i);
        }
        std::string message;
        call([&] {
            message = store_->reserve(out->batch, replace).message();
            return Status();
        });
        return {std::move(out), std::move(message)};
    }

    std::string commit(PyBatch& batch) {
        const nixl::python::GilRelease release;
        return store_->commit(batch.batch).message();
    }

    std::pair<nb::object, nb::object> describe(PyBatch& batch,
                                               uint8_t state,
                                               const Rows& parts,
                                               size_t per_item) {
        expectRows(batch, parts, per_item);
        auto local = std::make_unique<std::vector<Row>>();
        auto remote = std::make_unique<std::vector<Row>>();
        {
            const nixl::python::GilRelease release;
            store_->describe(batch.batch, static_cast<ItemState>(state), partsOf(parts), per_item,
                             *local, *remote);
        }
        return {toArray(std::move(local)), toArray(std::move(remote))};
    }

    // The first failure; empty where there is none.
    std::string move(PyBatch& batch,
                     uint8_t state,
                     const Rows& parts,
                     size_t per_item,
                     bool verify,
                     bool direct) {
        expectRows(batch, parts, per_item);
        const nixl::python::GilRelease release;
        return store_
            ->move(batch.batch, static_cast<ItemState>(state), partsOf(parts), per_item, verify,
                   direct)
            .message();
    }

    void checksum(PyBatch& batch, const Rows& parts, size_t per_item) {
        expectRows(batch, parts, per_item);
        const nixl::python::GilRelease release;
        store_->checksum(batch.batch, partsOf(parts), per_item);
    }

    void confirm(PyBatch& batch) {
        call([&] { return store_->confirm(batch.batch); });
    }
    void forgetCorrupt(PyBatch& batch) {
        call([&] { return store_->forgetCorrupt(batch.batch); });
    }
    void erase(const std::vector<std::string>& keys) {
        call([&] { return store_->erase(keys); });
    }
    void clear(const std::optional<std::vector<std::string>>& owners) {
        call([&] { return owners ? store_->clearOwners(*owners) : store_->clear(); });
    }
    uint64_t reclaimDead() {
        uint64_t bytes = 0;
        call([&] {
            auto given = store_->reclaimDead();
            bytes = given.ok() ? given.value() : 0;
            return given.ok() ? Status() : given.status();
        });
        return bytes;
    }
    uint64_t trim(uint64_t bytes, std::optional<size_t> directory) {
        uint64_t gone = 0;
        call([&] {
            auto some = directory ? store_->trim(bytes, *directory) : store_->trim(bytes);
            gone = some.ok() ? some.value() : 0;
            return some.ok() ? Status() : some.status();
        });
        return gone;
    }
    uint64_t liveBytes(size_t directory) {
        if (directory >= store_->directoryCount()) {
            throw nb::index_error("the store has no such directory");
        }
        return store_->directory(directory).stats().liveBytes;
    }
    bool maintain(double dead_fraction) {
        bool more = false;
        call([&] {
            auto again = store_->maintain(dead_fraction);
            more = again.ok() && again.value();
            return again.ok() ? Status() : again.status();
        });
        return more;
    }
    std::string segmentPath(uint64_t device) const { return store_->segmentPath(device); }
    bool segmentDropped(uint64_t device) const { return store_->segmentDropped(device); }
    std::vector<std::string> takeDroppedSegments() { return store_->takeDroppedSegments(); }

    nb::dict stats() {
        nixl::hicache::DirectoryStats sum;
        for (size_t i = 0; i < store_->directoryCount(); ++i) {
            const auto one = store_->directory(i).stats();
            sum.blocks += one.blocks;
            sum.liveBytes += one.liveBytes;
            sum.diskBytes += one.diskBytes;
            sum.segments += one.segments;
            sum.writers += one.writers;
            sum.ownedWriters += one.ownedWriters;
            sum.logBytes += one.logBytes;
            sum.damagedLogBytes += one.damagedLogBytes;
            sum.evictions += one.evictions;
            sum.evictedBytes += one.evictedBytes;
            sum.compactedBytes += one.compactedBytes;
            sum.corruptBlocks += one.corruptBlocks;
        }
        nb::dict out;
        out["blocks"] = sum.blocks;
        out["live_bytes"] = sum.liveBytes;
        out["disk_bytes"] = sum.diskBytes;
        out["segments"] = sum.segments;
        out["writers"] = sum.writers;
        out["owned_writers"] = sum.ownedWriters;
        out["log_bytes"] = sum.logBytes;
        out["damaged_log_bytes"] = sum.damagedLogBytes;
        out["evictions"] = sum.evictions;
        out["evicted_bytes"] = sum.evictedBytes;
        out["compacted_bytes"] = sum.compactedBytes;
        out["corrupt_blocks"] = sum.corruptBlocks;
        return out;
    }

    // (next, blocks, bytes, names of the bad ones); next is None at the end.
    nb::tuple check(size_t directory, uint32_t from, uint64_t max_bytes) {
        if (directory >= store_->directoryCount()) {
            throw std::invalid_argument("check: no such directory");
        }
        nixl::hicache::CheckResult result;
        std::vector<std::string> names;
        {
            const nixl::python::GilRelease release;
            result = store_->directory(directory).check(from, max_bytes);
            if (!result.bad.empty()) {
                names = store_->directory(directory).namesOf(result.bad);
            }
        }
        nb::object next = nb::none();
        if (result.next != nixl::hicache::kNone) {
            next = nb::int_(result.next);
        }
        return nb::make_tuple(next, result.blocks, result.bytes, names);
    }
    size_t directories() const { return store_->directoryCount(); }

  private:
    template <typename F>
    void call(F&& work) {
        Status status;
        {
            const nixl::python::GilRelease release;
            status = work();
        }
        raise(status);
    }

    std::unique_ptr<PyBatch> makeBatch(const nb::list& keys,
                                       const std::string& suffix,
                                       bool keep_names,
                                       uint32_t scope = 0) {
        auto out = std::make_unique<PyBatch>(store_);
        out->batch.items.reserve(nb::len(keys));
        std::string whole;
        for (nb::handle key : keys) {
            Py_ssize_t size = 0;
            const char* text = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
            if (text == nullptr) {
                throw nb::python_error();
            }
            whole.assign(text, static_cast<size_t>(size));
            whole += suffix;
            store_->addKey(out->batch, whole, keep_names, scope);
        }
        return out;
    }

    static void expectRows(const PyBatch& batch, const Rows& parts, size_t per_item) {
        if (per_item == 0 || parts.shape(0) != batch.batch.items.size() * per_item) {
            throw std::invalid_argument("the array of parts must have keys * per_item rows");
        }
    }
    static std::span<const Part> partsOf(const Rows& rows) {
        static_assert(sizeof(Part) == 3 * sizeof(uint64_t));
        return {reinterpret_cast<const Part*>(rows.data()), rows.shape(0)};
    }
    static nb::object toArray(std::unique_ptr<std::vector<Row>> rows) {
        auto* data = reinterpret_cast<uint64_t*>(rows->data());
        const size_t count = rows->size();
        nb::capsule owner(rows.release(), [](void* pointer) noexcept {
            delete static_cast<std::vector<Row>*>(pointer);
        });
        return nb::cast(
            nb::ndarray<nb::numpy, uint64_t, nb::shape<-1, 3>>(data, {count, 3}, owner));
    }

    std::shared_ptr<Store> store_;
};

nb::bytes states(const PyBatch& batch) {
    std::string out;
    out.reserve(batch.batch.items.size());
    for (const Item& item : batch.batch.items) {
        out.push_back(static_cast<char>(item.state));
    }
    return nb::bytes(out.data(), out.size());
}

// CRC32C of blocks of `per_block` rows each.
std::vector<uint32_t> checksums(const Rows& rows, size_t per_block) {
    if (per_block == 0 || rows.shape(0) % per_block != 0) {
        throw std::invalid_argument("checksums: rows must be a multiple of per_block");
    }
    std::vector<uint32_t> out(rows.shape(0) / per_block);
    const nixl::python::GilRelease release;
    nixl::hicache::checksumBlocks({reinterpret_cast<const Part*>(rows.data()), rows.shape(0)},
                                  per_block, out);
    return out;
}

// Each row into a file of its own that is made, or from one; OSError of the first that failed.
void moveFiles(const std::vector<std::string>& paths, const Rows& rows, bool write, bool direct) {
    if (rows.shape(0) != paths.size()) {
        throw std::invalid_argument("move_files: one path for each row is needed");
    }
    Status status;
    {
        const nixl::python::GilRelease release;
        const std::span<const Part> parts(reinterpret_cast<const Part*>(rows.data()),
                                          rows.shape(0));
        std::vector<Item> items(parts.size());
        std::vector<nixl::hicache::Piece> pieces;
        for (size_t i = 0; i < parts.size(); ++i) {
            items[i].length = parts[i].length;
            pieces.push_back({&items[i], parts.subspan(i, 1), &paths[i]});
        }
        status = nixl::hicache::movePieces(std::move(pieces),
                                           {.write = write, .direct = direct, .create = write});
    }
    raise(status);
}

void setState(PyBatch& batch, size_t i, uint8_t state) {
    if (i >= batch.batch.items.size() || state > static_cast<uint8_t>(ItemState::SIZE)) {
        throw nb::index_error("batch: no such item or state");
    }
    batch.batch.items[i].state = static_cast<ItemState>(state);
}

std::vector<uint64_t> lengths(const PyBatch& batch) {
    std::vector<uint64_t> out;
    out.reserve(batch.batch.items.size());
    for (const Item& item : batch.batch.items) {
        out.push_back(item.length);
    }
    return out;
}

}  // namespace

NIXL_PYTHON_MODULE(_hicache, m) {
    nb::set_leak_warnings(false);  // a connector may live until the interpreter ends
    static nixl::python::FirstImport first;
    if (first.repeat(m)) {
        return;
    }
    m.doc() = "The packed store of HiCache (internal; use nixl.hicache).";
    m.attr("MISS") = static_cast<int>(ItemState::MISS);
    m.attr("HIT") = static_cast<int>(ItemState::HIT);
    m.attr("NEW") = static_cast<int>(ItemState::NEW);
    m.attr("STORED") = static_cast<int>(ItemState::STORED);
    m.attr("REFUSED") = static_cast<int>(ItemState::REFUSED);
    m.attr("CORRUPT") = static_cast<int>(ItemState::CORRUPT);
    m.attr("FAILED") = static_cast<int>(ItemState::FAILED);
    m.attr("SIZE") = static_cast<int>(ItemState::SIZE);

    m.def("checksums", &checksums, nb::arg("rows"), nb::arg("per_block"));

    m.def("move_files", &moveFiles, nb::arg("paths"), nb::arg("rows"), nb::arg("write"),
          nb::arg("direct"));

    nb::class_<PyBatch>(m, "Batch")
        .def("states", &states)
        .def("lengths", &lengths)
        .def("set_state", &setState, nb::arg("index"), nb::arg("state"))
        .def("__len__", [](const PyBatch& batch) { return batch.batch.items.size(); });

    nb::class_<PyStore>(m, "Store")
        .def(nb::init<std::vector<std::string>, uint64_t, uint64_t, bool, bool, bool, bool,
                      unsigned>(),
             nb::arg("directories"), nb::arg("segment_bytes") = 256ULL << 20,
             nb::arg("max_bytes") = 0, nb::arg("durable") = false, nb::arg("read_only") = false,
             nb::arg("segment_per_batch") = false, nb::arg("external_segments") = false,
             nb::arg("file_mode") = nixl::hicache::kFileMode)
        .def("find", &PyStore::find, nb::arg("keys"), nb::arg("suffix") = "")
        .def("contains_prefix", &PyStore::containsPrefix, nb::arg("keys"), nb::arg("suffix") = "")
        .def("reserve", &PyStore::reserve, nb::arg("keys"), nb::arg("suffix"), nb::arg("lengths"),
             nb::arg("replace"), nb::arg("owner") = "")
        .def("commit", &PyStore::commit, nb::arg("batch"))
        .def("describe", &PyStore::describe, nb::arg("batch"), nb::arg("state"), nb::arg("parts"),
             nb::arg("per_item"))
        .def("move", &PyStore::move, nb::arg("batch"), nb::arg("state"), nb::arg("parts"),
             nb::arg("per_item"), nb::arg("verify"), nb::arg("direct"))
        .def("checksum", &PyStore::checksum, nb::arg("batch"), nb::arg("parts"),
             nb::arg("per_item"))
        .def("confirm", &PyStore::confirm, nb::arg("batch"))
        .def("forget_corrupt", &PyStore::forgetCorrupt, nb::arg("batch"))
        .def("erase", &PyStore::erase, nb::arg("keys"))
        .def("clear", &PyStore::clear, nb::arg("owners") = nb::none())
        .def("reclaim_dead", &PyStore::reclaimDead)
        .def("trim", &PyStore::trim, nb::arg("bytes"), nb::arg("directory") = nb::none())
        .def("live_bytes", &PyStore::liveBytes, nb::arg("directory"))
        .def("maintain", &PyStore::maintain, nb::arg("dead_fraction") = 0.5)
        .def("segment_path", &PyStore::segmentPath, nb::arg("device"))
        .def("segment_dropped", &PyStore::segmentDropped, nb::arg("device"))
        .def("take_dropped_segments", &PyStore::takeDroppedSegments)
        .def("stats", &PyStore::stats)
        .def("check", &PyStore::check, nb::arg("directory"), nb::arg("start"), nb::arg("max_bytes"))
        .def_prop_ro("directories", &PyStore::directories);
    first.keep(m);
}
