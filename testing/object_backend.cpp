// See object_backend.h.
#include "testing/object_backend.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nixl::testkit {
namespace {

struct Options {
    std::shared_ptr<ObjectStore> store;
    std::string bucket;
    uint64_t maxObject = 0;
    bool usePool = true;
};

struct ObjectMemory final : BackendMemory {
    explicit ObjectMemory(std::string_view name) : key(name) {}
    const std::string key;  // empty for host memory
};

std::string reason(int error) {
    return error == ENOENT ? "no such object" : error == EFBIG ? "max_object reached" : "it ends";
}

// One post: all segments, each with its own end.
struct Post {
    CompletionPtr completion;
    const TransferPlan* plan = nullptr;
    const Options* options = nullptr;

    void run() {
        std::vector<SegmentFailure> failures;
        std::string first;
        SegmentCursor cursor(plan->runs);
        for (Segment segment; cursor.next(segment);) {
            if (completion->cancelRequested()) {
                completion->cancel("OBJECTS: canceled");
                return;
            }
            const auto* const memory =
                static_cast<const ObjectMemory*>(plan->remoteRegions[segment.remoteRegion].memory);
            uint64_t done = 0;
            const int error = move(memory->key, segment, done);
            if (error == 0) {
                continue;
            }
            failures.push_back({segment.planOffset, segment.size, done, error});
            if (first.empty()) {
                first = "OBJECTS: " + std::string(opName(plan->op)) + " of \"" + options->bucket +
                        "/" + memory->key + "\" at " + std::to_string(segment.remote) + ": " +
                        std::to_string(done) + " of " + std::to_string(segment.size) + " bytes, " +
                        reason(error);
            }
        }
        if (failures.empty()) {
            completion->succeed();
        } else {
            const int error = failures.front().systemErrno;
            completion->fail(Status::backend(std::move(first), error), std::move(failures));
        }
    }

    // 0 or an errno.
    int move(const std::string& key, const Segment& segment, uint64_t& done) const {
        auto* const memory = reinterpret_cast<uint8_t*>(segment.local);
        const std::span<uint8_t> bytes(memory, segment.size);
        if (plan->op == OpType::WRITE) {
            if (!options->store->put(key, segment.remote, bytes, options->maxObject)) {
                return EFBIG;
            }
            done = segment.size;
            return 0;
        }
        const auto got = options->store->get(key, segment.remote, bytes);
        done = got.value_or(0);
        return !got ? ENOENT : done < segment.size ? ENODATA : 0;
    }
};

class ObjectTransfer final : public BackendTransfer {
  public:
    ObjectTransfer(const TransferPlan& plan, const Options& options, PluginServices& services)
        : plan_(plan), options_(options), services_(services) {}

    Status post(CompletionPtr completion,
                std::string_view /*notification*/,
                bool /*has_notification*/) override {
        Post post{std::move(completion), &plan_, &options_};
        if (options_.usePool) {
            services_.copyPool().run([post = std::move(post)]() mutable { post.run(); });
        } else {
            post.run();
        }
        return {};
    }
    void cancel() override {}  // the flag of the completion is read between segments
    TransferDescription describe() const override {
        return {"", "objects in memory", options_.bucket};
    }

  private:
    const TransferPlan& plan_;
    const Options& options_;
    PluginServices& services_;
};

class ObjectBackend final : public Backend, public QuerySupport {
  public:
    ObjectBackend(Options options, PluginServices& services)
        : options_(std::move(options)), services_(services) {}

    const BackendInfo& info() const override { return info_; }
    QuerySupport* query() override { return this; }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (region.type != MemType::DRAM && region.type != MemType::OBJECT) {
            return Status::notSupported(std::string("OBJECTS: cannot hold ") +
                                        memTypeName(region.type));
        }
        if (region.type == MemType::OBJECT && region.metadata.empty()) {
            return Status::invalidParam("OBJECTS: the descriptor names no key in its metadata");
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<ObjectMemory>(
            region.type == MemType::OBJECT ? region.metadata : std::string_view()));
    }
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        const auto is_object = [](const PlanRegion& region) {
            return region.type == MemType::OBJECT;
        };
        if (!std::all_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), is_object)) {
            return Status::notSupported("OBJECTS: the remote side must be objects");
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<ObjectTransfer>(plan, options_, services_));
    }

    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override {
        std::vector<std::optional<std::map<std::string, std::string>>> answers;
        for (const MemoryRegion& region : regions) {
            const auto size = options_.store->size(region.metadata);
            answers.emplace_back();
            if (size) {
                answers.back() = {{"size", std::to_string(*size)}};
            }
        }
        return answers;
    }
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override {
        std::vector<StorageEntry> entries;
        for (const std::string& key : options_.store->keys(prefix, limit)) {
            entries.push_back(
                {key, {{"size", std::to_string(options_.store->size(key).value_or(0))}}});
        }
        return entries;
    }
    Status remove(std::string_view name) override {
        return options_.store->remove(name)
                   ? Status()
                   : Status::notFound("OBJECTS: no object \"" + std::string(name) + "\"");
    }

  private:
    const BackendInfo info_{"OBJECTS", {MemType::DRAM, MemType::OBJECT}, true};
    const Options options_;
    PluginServices& services_;
};

Result<std::unique_ptr<Backend>> createObjectBackend(const Parameters& parameters,
                                                     PluginServices& services) {
    Options options;
    options.bucket = parameters.text("bucket");
    options.store = ObjectStore::open(options.bucket);
    options.maxObject = parameters.size("max_object");
    options.usePool = parameters.flag("use_pool");
    return std::unique_ptr<Backend>(std::make_unique<ObjectBackend>(std::move(options), services));
}

const MemType kTypes[] = {MemType::DRAM, MemType::OBJECT};
const ParameterSpec kParameters[] = {
    {"bucket", ParameterType::STRING, "test", "name of the store"},
    {"max_object", ParameterType::SIZE, "1G", "limit of an object's size", 1},
    {"use_pool", ParameterType::BOOL, "true", "on the copy pool, else inside post"},
    {"word", ParameterType::SECRET, "", "not used: a text that nothing may show"},
};

class ObjectBuffer final : public Buffer {
  public:
    ObjectBuffer(const std::string& bucket, std::string key, uint64_t size)
        : Buffer(size), store_(ObjectStore::open(bucket)), key_(std::move(key)) {
        store_->resize(key_, size);
    }
    ~ObjectBuffer() override { store_->remove(key_); }

    MemoryRegion region() const override { return {MemType::OBJECT, 0, size(), 0, key_}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        store_->put(key_, offset, bytes, UINT64_MAX);
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        store_->get(key_, offset, bytes);
    }
    bool truncate(uint64_t size) override {
        store_->resize(key_, size);
        return true;
    }

  private:
    const std::shared_ptr<ObjectStore> store_;
    const std::string key_;
};

}  // namespace

std::shared_ptr<ObjectStore> ObjectStore::open(const std::string& bucket) {
    struct Buckets {
        Mutex mutex;
        std::map<std::string, std::weak_ptr<ObjectStore>> stores;
    };
    static Buckets* const buckets = new Buckets;
    const MutexLock lock(buckets->mutex);
    std::shared_ptr<ObjectStore> store = buckets->stores[bucket].lock();
    if (!store) {
        store = std::make_shared<ObjectStore>();
        buckets->stores[bucket] = store;
    }
    return store;
}

std::optional<uint64_t> ObjectStore::get(std::string_view key,
                                         uint64_t offset,
                                         std::span<uint8_t> bytes) {
    const MutexLock lock(mutex_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) {
        return std::nullopt;
    }
    const std::vector<uint8_t>& object = found->second;
    const uint64_t there = offset < object.size() ? object.size() - offset : 0;
    const uint64_t count = std::min<uint64_t>(there, bytes.size());
    if (count > 0) {
        std::copy_n(object.begin() + static_cast<int64_t>(offset), count, bytes.begin());
    }
    return count;
}

bool ObjectStore::put(std::string_view key,
                      uint64_t offset,
                      std::span<const uint8_t> bytes,
                      uint64_t most) {
    if (offset > most || bytes.size() > most - offset) {
        return false;
    }
    const MutexLock lock(mutex_);
    std::vector<uint8_t>& object = objects_[std::string(key)];
    if (object.size() < offset + bytes.size()) {
        object.resize(offset + bytes.size());
    }
    std::copy(bytes.begin(), bytes.end(), object.begin() + static_cast<int64_t>(offset));
    return true;
}

std::optional<uint64_t> ObjectStore::size(std::string_view key) {
    const MutexLock lock(mutex_);
    const auto found = objects_.find(key);
    return found != objects_.end() ? std::optional<uint64_t>(found->second.size()) : std::nullopt;
}

void ObjectStore::resize(std::string_view key, uint64_t size) {
    const MutexLock lock(mutex_);
    objects_[std::string(key)].resize(size);
}

bool ObjectStore::remove(std::string_view key) {
    const MutexLock lock(mutex_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) {
        return false;
    }
    objects_.erase(found);
    return true;
}

std::vector<std::string> ObjectStore::keys(std::string_view prefix, size_t limit) {
    const MutexLock lock(mutex_);
    std::vector<std::string> keys;
    for (auto at = objects_.lower_bound(prefix);
         at != objects_.end() && at->first.starts_with(prefix) && keys.size() < limit; ++at) {
        keys.push_back(at->first);
    }
    return keys;
}

const PluginTable& objectBackendTable() {
    static const PluginTable table = [] {
        PluginTable made{};
        made.abi = kPluginAbi;
        made.kind = PluginKind::BACKEND;
        made.name = "OBJECTS";
        made.version = "1";
        made.help = "test backend: an object store in memory";
        made.memoryTypes = kTypes;
        made.memoryTypeCount = std::size(kTypes);
        made.parameters = kParameters;
        made.parameterCount = std::size(kParameters);
        made.createBackend = createObjectBackend;
        return made;
    }();
    return table;
}

std::unique_ptr<Buffer> makeObjectBuffer(const std::string& bucket,
                                         const std::string& key,
                                         uint64_t size) {
    return std::make_unique<ObjectBuffer>(bucket, key, size);
}

}  // namespace nixl::testkit
