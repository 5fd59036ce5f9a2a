// The agents that a namespace of a central store names: read once, then followed. The agents of a
// process that use one store and one namespace share it, so it costs each of them nothing to know
// everybody. Blobs are kept as bytes; an agent takes one in when it first has to do with that peer.
//
//   ROOT[/]NAME/metadata            the whole, as of one version
//   ROOT[/]NAME/changes/VERSION     what changed since an earlier version, up to this one
//   ROOT[/]NAME/LABEL               parts that the application publishes; not followed here
//
// Thread-safe. Listeners are called on a thread of the store, without a lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "exchange/store.h"
#include "metadata/blob.h"
#include "session/network_access.h"

namespace nixl::exchange {

// What is said of one agent. Immutable.
struct DirectoryEntry {
    peer::Identity who;
    std::string key;       // of the whole
    uint64_t version = 0;  // of blob and changes together
    std::shared_ptr<const std::string> blob;
    std::vector<std::shared_ptr<const std::string>> changes;  // in order
    uint64_t round = 0;  // in which reading of the store it was seen last
};
using EntryPtr = std::shared_ptr<const DirectoryEntry>;

class Directory {
  public:
    class Listener {
      public:
        virtual ~Listener() = default;
        // `before`: what was there under this name; null: nothing.
        virtual void entered(const EntryPtr& now, const EntryPtr& before) = 0;
        // `withdrawn`: the agent itself took it back; else its entry has gone, with its lease or
        // by somebody's hand.
        virtual void left(const EntryPtr& was, bool withdrawn) = 0;
        // Everything that was there has been told.
        virtual void synced() = 0;
    };

    // The value that an agent leaves for a moment where it takes its metadata back.
    static constexpr std::string_view kWithdrawn = "NIXLGONE";

    static std::shared_ptr<Directory> open(const std::shared_ptr<MetadataStore>& store,
                                           std::string root);
    Directory(std::shared_ptr<MetadataStore> store, std::string root);
    ~Directory();
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;

    // False where the store cannot be watched: then nothing is ever found here.
    bool follows() const { return follows_; }
    EntryPtr find(const std::string& name) const;
    std::vector<std::string> names() const;
    size_t size() const;
    bool isSynced() const;
    // Why the store is not followed at the moment; OK where it is.
    Status trouble() const;
    // Why what stands under this name is no entry; OK where it is one, or nothing is there.
    Status unreadable(const std::string& name) const;

    void subscribe(const std::shared_ptr<Listener>& listener);

  private:
    using Listeners = std::vector<std::shared_ptr<Listener>>;
    enum class Kind : uint8_t { WHOLE, CHANGE, OTHER };
    struct Place {
        Kind kind = Kind::OTHER;
        std::string name;
    };
    struct Change {
        peer::Identity who;
        uint64_t base = 0;
        uint64_t version = 0;
        std::shared_ptr<const std::string> blob;
    };

    bool start();
    Place placeOf(const std::string& key) const;
    void onEvent(StoreEvent event);
    void onPut(StoreEntry&& entry);
    void onWhole(const std::string& name, StoreEntry&& entry);
    void onChange(const std::string& name, StoreEntry&& entry);
    void onRemoved(const std::string& key, bool withdrawn);
    void onSynced();
    void refuse(const std::string& name, const std::string& key, const Status& why);
    Result<metadata::Blob> read(const std::string& name, const StoreEntry& entry) const;
    void enter(std::shared_ptr<DirectoryEntry> entry);
    Listeners listeners();

    const std::shared_ptr<MetadataStore> store_;
    const std::string root_;  // ends in '/'
    bool follows_ = false;
    std::unique_ptr<StoreWatch> watch_;

    mutable Mutex mutex_;
    std::map<std::string, EntryPtr> entries_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, std::string> keys_ NIXL_GUARDED_BY(mutex_);  // of wholes → name
    // Changes by key, also of those whose whole has not come yet.
    std::map<std::string, std::map<std::string, Change>> changes_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, Status> unreadable_ NIXL_GUARDED_BY(mutex_);
    uint64_t round_ NIXL_GUARDED_BY(mutex_) = 1;
    bool synced_ NIXL_GUARDED_BY(mutex_) = false;
    Status trouble_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::weak_ptr<Listener>> listeners_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::exchange
