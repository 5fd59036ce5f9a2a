// See file_store.h.
#include "exchange_file/file_store.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mutex.h"
#include "exchange/store_thread.h"
#include "exchange_file/entry_file.h"

namespace nixl::exchange_file {

namespace {

using exchange::MetadataStore;
using exchange::StoreEntry;
using exchange::StoreEvent;
using exchange::StoreThread;
using exchange::StoreWatch;

constexpr std::chrono::milliseconds kLook{100};  // how often watches look again

Result<std::vector<std::string>> namesIn(const std::string& directory) {
    DIR* const folder = opendir(directory.c_str());
    if (folder == nullptr) {
        return Status::backend(
            "cannot read " + directory + ": " + std::generic_category().message(errno), errno);
    }
    std::vector<std::string> names;
    while (const dirent* const one = readdir(folder)) {
        if (isEntryName(one->d_name)) {
            names.emplace_back(one->d_name);
        }
    }
    closedir(folder);
    std::sort(names.begin(), names.end());
    return names;
}

// What one watch has told. The store's thread alone uses it, but for `ended`.
struct Watched {
    std::string prefix;
    std::function<void(StoreEvent)> event;
    std::map<std::string, uint64_t> told;  // revision by key
    bool synced = false;
    std::string failure;  // told last
    Mutex mutex;          // held while it is told of something
    bool ended NIXL_GUARDED_BY(mutex) = false;

    void tell(StoreEvent one) {
        const MutexLock lock(mutex);
        if (!ended) {
            event(std::move(one));
        }
    }
};

class FileWatch final : public StoreWatch {
  public:
    explicit FileWatch(std::shared_ptr<Watched> watched) : watched_(std::move(watched)) {}
    ~FileWatch() override {
        const MutexLock lock(watched_->mutex);
        watched_->ended = true;
    }

  private:
    const std::shared_ptr<Watched> watched_;
};

// What the thread works with; outlives the store where a call to the file system hangs.
class Files {
  public:
    explicit Files(std::string directory) : directory_(std::move(directory)) {}

    const std::string& directory() const { return directory_; }
    // From any thread.
    void add(const std::shared_ptr<Watched>& watched) {
        const MutexLock lock(mutex_);
        watches_.push_back(watched);
    }
    // On the store's thread.
    Status put(StoreEntry entry, bool owned);
    Result<std::vector<StoreEntry>> list(const std::string& prefix);
    Status remove(const std::string& key);
    void look();
    void lookFor(Watched& watched);

  private:
    const std::string directory_;
    std::map<std::string, base::Fd> owned_;  // locks of what this process owns
    std::set<std::string> complained_;       // damaged files that were told of
    Mutex mutex_;
    std::vector<std::weak_ptr<Watched>> watches_ NIXL_GUARDED_BY(mutex_);
};

class FileStore final : public MetadataStore {
  public:
    explicit FileStore(const std::string& directory)
        : files_(std::make_shared<Files>(directory)),
          thread_("nixl-store", [files = files_] { files->look(); }, kLook) {}

    std::string describe() const override { return "directory " + files_->directory(); }
    void put(std::string key,
             std::string value,
             Lifetime lifetime,
             std::function<void(Status)> done) override;
    void get(std::string key, std::function<void(Result<std::optional<StoreEntry>>)> done) override;
    void list(std::string prefix,
              std::function<void(Result<std::vector<StoreEntry>>)> done) override;
    void remove(std::string key, std::function<void(Status)> done) override;
    std::unique_ptr<StoreWatch> watch(std::string prefix,
                                      std::function<void(StoreEvent)> event) override;

  private:
    const std::shared_ptr<Files> files_;
    StoreThread thread_;  // ends first
};

Status Files::put(StoreEntry entry, bool owned) {
    const auto before = readEntry(directory_, fileName(entry.key));
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    entry.revision =
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
    if (before.ok() && before.value()) {  // also where the clock went back
        entry.revision = std::max(entry.revision, before.value()->entry.revision + 1);
    }
    const std::string key = entry.key;
    auto written = writeEntry(directory_, {std::move(entry), owned});
    if (!written.ok()) {
        return written.status();
    }
    owned_.erase(key);
    if (owned) {
        owned_[key] = std::move(written).value();
    }
    return {};
}

Status Files::remove(const std::string& key) {
    owned_.erase(key);
    return removeEntry(directory_, fileName(key));
}

void FileStore::put(std::string key,
                    std::string value,
                    Lifetime lifetime,
                    std::function<void(Status)> done) {
    thread_.run(
        [files = files_, entry = StoreEntry{std::move(key), std::move(value), 0}, lifetime,
         done](const StoreThread::Finish& finish) {
            Status status = files->put(entry, lifetime == Lifetime::OWNER);
            if (finish()) {
                done(std::move(status));
            }
        },
        done);
}

void FileStore::get(std::string key, std::function<void(Result<std::optional<StoreEntry>>)> done) {
    using Found = Result<std::optional<StoreEntry>>;
    thread_.run(
        [files = files_, key = std::move(key), done](const StoreThread::Finish& finish) {
            auto file = readEntry(files->directory(), fileName(key));
            if (!finish()) {
                return;
            }
            if (!file.ok()) {
                return done(Found(file.status()));
            }
            done(file.value() ? Found(std::optional(std::move(file.value()->entry)))
                              : Found(std::optional<StoreEntry>()));
        },
        [done](Status why) { done(Found(std::move(why))); });
}

// What is damaged is told of once, and passed over: the others are of use all the same.
Result<std::vector<StoreEntry>> Files::list(const std::string& prefix) {
    auto names = namesIn(directory_);
    if (!names.ok()) {
        return names.status();
    }
    std::vector<StoreEntry> all;
    for (const std::string& name : names.value()) {
        auto file = readEntry(directory_, name);
        if (!file.ok()) {
            if (complained_.insert(name).second) {
                base::log(LogLevel::WARN, "metadata store: " + file.status().message());
            }
            continue;
        }
        complained_.erase(name);
        std::optional<FileEntry> found = std::move(file).value();
        if (found.has_value() && found->entry.key.starts_with(prefix)) {
            all.push_back(std::move(found->entry));
        }
    }
    return all;
}

void FileStore::list(std::string prefix,
                     std::function<void(Result<std::vector<StoreEntry>>)> done) {
    thread_.run(
        [files = files_, prefix = std::move(prefix), done](const StoreThread::Finish& finish) {
            auto all = files->list(prefix);
            if (finish()) {
                done(std::move(all));
            }
        },
        [done](Status why) { done(Result<std::vector<StoreEntry>>(std::move(why))); });
}

void FileStore::remove(std::string key, std::function<void(Status)> done) {
    thread_.run(
        [files = files_, key = std::move(key), done](const StoreThread::Finish& finish) {
            Status status = files->remove(key);
            if (finish()) {
                done(std::move(status));
            }
        },
        done);
}

std::unique_ptr<StoreWatch> FileStore::watch(std::string prefix,
                                             std::function<void(StoreEvent)> event) {
    auto watched = std::make_shared<Watched>();
    watched->prefix = std::move(prefix);
    watched->event = std::move(event);
    files_->add(watched);
    thread_.run(
        [files = files_, watched](const StoreThread::Finish& finish) {
            files->lookFor(*watched);
            static_cast<void>(finish());
        },
        [](const Status&) {});
    return std::make_unique<FileWatch>(std::move(watched));
}

void Files::look() {
    std::vector<std::shared_ptr<Watched>> all;
    {
        const MutexLock lock(mutex_);
        std::erase_if(watches_, [](const auto& one) { return one.expired(); });
        for (const auto& weak : watches_) {
            if (auto one = weak.lock()) {
                all.push_back(std::move(one));
            }
        }
    }
    for (const auto& one : all) {
        lookFor(*one);
    }
}

void Files::lookFor(Watched& watched) {
    auto all = list(watched.prefix);
    if (!all.ok()) {
        if (std::exchange(watched.failure, all.status().message()) != all.status().message()) {
            watched.tell({StoreEvent::Kind::FAILED, {}, all.status()});
        }
        return;
    }
    watched.failure.clear();
    std::map<std::string, uint64_t> before = std::exchange(watched.told, {});
    for (StoreEntry& entry : all.value()) {
        const auto known = before.find(entry.key);
        const bool fresh = known == before.end() || known->second != entry.revision;
        watched.told[entry.key] = entry.revision;
        if (known != before.end()) {
            before.erase(known);
        }
        if (fresh) {
            watched.tell({StoreEvent::Kind::PUT, std::move(entry), {}});
        }
    }
    for (const auto& [key, revision] : before) {
        watched.tell({StoreEvent::Kind::REMOVED, {key, {}, 0}, {}});
    }
    if (!std::exchange(watched.synced, true)) {
        watched.tell({StoreEvent::Kind::SYNCED, {}, {}});
    }
}

}  // namespace

Result<std::unique_ptr<MetadataStore>> makeFileStore(const std::string& where) {
    const std::string directory =
        where.starts_with("file://")
            ? where.substr(7)
            : where.substr(where.starts_with("file:") ? sizeof("file:") - 1 : 0);
    struct stat info {};
    if (directory.empty() || directory.find('\0') != std::string::npos) {
        return Status::invalidParam("metadata_store: the name of a directory is needed");
    }
    if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
        return Status::backend(
            "metadata_store " + directory + ": " + std::generic_category().message(errno), errno);
    }
    if (stat(directory.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
        return Status::invalidParam("metadata_store " + directory + " is no directory");
    }
    if (access(directory.c_str(), R_OK | W_OK | X_OK) != 0) {
        return Status::backend(
            "metadata_store " + directory + ": " + std::generic_category().message(errno), errno);
    }
    return std::unique_ptr<MetadataStore>(std::make_unique<FileStore>(directory));
}

}  // namespace nixl::exchange_file
