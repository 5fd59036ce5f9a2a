// SHELF, an example of a backend: each object is a file of one folder, its name is the key.
//
// A descriptor of type OBJ names its key in the metadata; its address is the offset in the file.
// Transfers run on the core's pool, one task each, piece by piece; a piece that fails does not
// stop the others. Walked through in docs/backend_guide.md.
//
// Owned by the core. Threads: as nixl/backend.h; what is shared is constant or atomic.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nixl/plugin.h>

namespace {

using namespace nixl;  // NOLINT(google-build-using-namespace): an example of its interface

constexpr uint64_t kStep = 1 << 20;  // bytes between two looks at the cancel flag

// The errno is an argument: whatever builds the message might change it.
std::string describe(const std::string& what, int error) {
    return "SHELF: " + what + ": " + std::strerror(error);
}

bool isKey(std::string_view key) {
    return !key.empty() && key.find('/') == std::string_view::npos && key != "." && key != "..";
}

// ---- Memory ------------------------------------------------------------------------------------

// One registered object: its file, open as long as it is registered. Host memory needs nothing.
class Shelved final : public BackendMemory {
  public:
    // `open_objects` is the backend's count, which lives longer.
    Shelved(int fd, std::string key, std::atomic<int64_t>& open_objects)
        : fd_(fd), key_(std::move(key)), openObjects_(open_objects) {}
    ~Shelved() override {
        close(fd_);
        openObjects_.fetch_sub(1);
    }
    Shelved(const Shelved&) = delete;
    Shelved& operator=(const Shelved&) = delete;
    int fd() const { return fd_; }
    const std::string& key() const { return key_; }

  private:
    const int fd_;
    const std::string key_;
    std::atomic<int64_t>& openObjects_;
};

// ---- Transfers ---------------------------------------------------------------------------------

// One post, alive in its task. It may touch the plan and the memory until the completion has
// ended, and nothing of them afterwards.
class Work {
  public:
    Work(const TransferPlan& plan, CompletionPtr completion, bool sync)
        : plan_(plan), completion_(std::move(completion)), sync_(sync) {}

    void run() {
        SegmentCursor cursor(plan_.runs);
        for (Segment segment; cursor.next(segment);) {
            if (!move(segment)) {
                completion_->cancel("SHELF: canceled");
                return;
            }
        }
        if (failures_.empty()) {
            completion_->succeed();
        } else {
            const int error = failures_.front().systemErrno;
            completion_->fail(Status::backend(std::move(first_), error), std::move(failures_));
        }
    }

  private:
    // False where it was asked to stop before the segment was complete.
    bool move(const Segment& segment) {
        const auto& file =
            static_cast<const Shelved&>(*plan_.remoteRegions[segment.remoteRegion].memory);
        uint64_t done = 0;
        int error = 0;
        while (done < segment.size && error == 0) {
            if (completion_->cancelRequested()) {
                return false;
            }
            const ssize_t moved = step(file.fd(), segment, done);
            if (moved > 0) {
                done += static_cast<uint64_t>(moved);
            } else if (moved == 0) {
                error = ENODATA;  // the object ends here
            } else if (errno != EINTR) {
                error = errno;
            }
        }
        if (error == 0 && sync_ && plan_.op == OpType::WRITE && fdatasync(file.fd()) != 0) {
            error = errno;
        }
        if (error != 0) {
            report(segment, file.key(), done, error);
        }
        return true;
    }

    ssize_t step(int fd, const Segment& segment, uint64_t done) const {
        auto* const memory = reinterpret_cast<char*>(segment.local + done);
        const uint64_t size = std::min(kStep, segment.size - done);
        const auto offset = static_cast<off_t>(segment.remote + done);
        return plan_.op == OpType::READ ? pread(fd, memory, size, offset)
                                        : pwrite(fd, memory, size, offset);
    }

    // The object, the value and the cause, and how far it came.
    void report(const Segment& segment, const std::string& key, uint64_t done, int error) {
        if (failures_.empty()) {
            first_ = describe(std::string(opName(plan_.op)) + " of \"" + key + "\" at " +
                                  std::to_string(segment.remote) + ": " + std::to_string(done) +
                                  " of " + std::to_string(segment.size) + " bytes",
                              error);
        }
        failures_.push_back({segment.planOffset, segment.size, done, error});
    }

    const TransferPlan& plan_;
    const CompletionPtr completion_;
    const bool sync_;
    std::vector<SegmentFailure> failures_;
    std::string first_;
};

class ShelfTransfer final : public BackendTransfer {
  public:
    ShelfTransfer(const TransferPlan& plan, WorkPool& pool, bool sync)
        : plan_(plan), pool_(pool), sync_(sync) {}

    // Storage gets no notification: the core delivers it itself.
    Status post(CompletionPtr completion,
                std::string_view /*notification*/,
                bool /*has_notification*/) override {
        auto work = std::make_shared<Work>(plan_, std::move(completion), sync_);
        pool_.run([work] { work->run(); });
        return {};
    }
    void cancel() override {}  // the task looks at the completion's flag between steps
    TransferDescription describe() const override { return {"", "files of a folder", "shelf"}; }

  private:
    const TransferPlan& plan_;  // the core keeps it as long as this transfer
    WorkPool& pool_;
    const bool sync_;
};

// ---- The backend -------------------------------------------------------------------------------

class Shelf final : public Backend, public QuerySupport {
  public:
    Shelf(std::string folder, int folder_fd, bool sync, int64_t most, PluginServices& services)
        : folder_(std::move(folder)),
          folderFd_(folder_fd),
          sync_(sync),
          mostOpen_(most),
          services_(services) {}
    ~Shelf() override { close(folderFd_); }
    Shelf(const Shelf&) = delete;
    Shelf& operator=(const Shelf&) = delete;

    const BackendInfo& info() const override { return info_; }
    QuerySupport* query() override { return this; }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (region.type == MemType::DRAM) {
            return std::unique_ptr<BackendMemory>(std::make_unique<BackendMemory>());
        }
        const std::string key(region.metadata);
        if (region.type != MemType::OBJECT || !isKey(key)) {
            return Status::invalidParam("SHELF: " + std::string(memTypeName(region.type)) + " \"" +
                                        key + "\": must be DRAM, or OBJ with a key without '/'");
        }
        if (openObjects_.fetch_add(1) >= mostOpen_) {
            openObjects_.fetch_sub(1);
            return Status::notAllowed("SHELF: \"" + key + "\": max_objects=" +
                                      std::to_string(mostOpen_) + " are registered already");
        }
        const int fd = openat(folderFd_, key.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0) {
            const int error = errno;
            openObjects_.fetch_sub(1);
            return Status::backend(describe(folder_ + "/" + key, error), error);
        }
        services_.count("objects_opened", 1);
        return std::unique_ptr<BackendMemory>(std::make_unique<Shelved>(fd, key, openObjects_));
    }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        for (const PlanRegion& region : plan.remoteRegions) {
            if (region.type != MemType::OBJECT) {
                return Status::notSupported("SHELF: the remote side must be OBJ, not " +
                                            std::string(memTypeName(region.type)));
            }
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<ShelfTransfer>(plan, services_.copyPool(), sync_));
    }

    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override {
        std::vector<std::optional<std::map<std::string, std::string>>> answers(regions.size());
        for (size_t i = 0; i < regions.size(); ++i) {
            const std::string key(regions[i].metadata);
            struct stat status {};
            if (isKey(key) && fstatat(folderFd_, key.c_str(), &status, 0) == 0) {
                answers[i] = {{"size", std::to_string(status.st_size)},
                              {"mtime", std::to_string(status.st_mtime)}};
            }
        }
        return answers;
    }

    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override {
        std::vector<StorageEntry> entries;
        DIR* const directory = opendir(folder_.c_str());
        if (directory == nullptr) {
            const int error = errno;
            return Status::backend(describe("list of " + folder_, error), error);
        }
        while (const dirent* entry = readdir(directory)) {
            const std::string_view name = entry->d_name;
            if (entries.size() < limit && isKey(name) && name.starts_with(prefix)) {
                entries.push_back({std::string(name), {}});
            }
        }
        closedir(directory);
        return entries;
    }

    Status remove(std::string_view name) override {
        const std::string key(name);
        if (!isKey(key) || unlinkat(folderFd_, key.c_str(), 0) != 0) {
            const int error = errno;
            return Status::notFound(describe("remove \"" + key + "\"", error));
        }
        return {};
    }

  private:
    const BackendInfo info_{"SHELF", {MemType::DRAM, MemType::OBJECT}, true};
    const std::string folder_;
    const int folderFd_;
    const bool sync_;
    const int64_t mostOpen_;
    std::atomic<int64_t> openObjects_{0};
    PluginServices& services_;
};

Result<std::unique_ptr<Backend>> createShelf(const Parameters& parameters,
                                             PluginServices& services) {
    const std::string folder = parameters.text("folder");
    const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        const int error = errno;
        return Status::backend(describe("folder \"" + folder + "\"", error), error);
    }
    return std::unique_ptr<Backend>(std::make_unique<Shelf>(
        folder, fd, parameters.flag("sync"), parameters.integer("max_objects"), services));
}

// ---- The plugin --------------------------------------------------------------------------------

const MemType kTypes[] = {MemType::DRAM, MemType::OBJECT};
const char* const kAliases[] = {"BOOKSHELF", nullptr};
const ParameterSpec kParameters[] = {
    {"folder", ParameterType::STRING, "/tmp", "where the objects lie"},
    {"sync", ParameterType::BOOL, "false", "DONE only once the bytes are on the device"},
    {"max_objects", ParameterType::INTEGER, "1000", "registered at a time, each an open file", 1},
};

const PluginTable kTable = {
    .abi = kPluginAbi,
    .kind = PluginKind::BACKEND,
    .name = "SHELF",
    .aliases = kAliases,
    .version = "1.0",
    .help = "objects as files of one folder (an example)",
    .memoryTypes = kTypes,
    .memoryTypeCount = std::size(kTypes),
    .parameters = kParameters,
    .parameterCount = std::size(kParameters),
    .createBackend = createShelf,
    .exporter = nullptr,
};

}  // namespace

NIXL_EXPORT_PLUGIN(kTable)
