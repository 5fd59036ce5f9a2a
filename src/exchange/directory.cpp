// See directory.h.
#include "exchange/directory.h"

#include <algorithm>
#include <utility>

#include "base/fork.h"
#include "base/log.h"

namespace nixl::exchange {
namespace {

constexpr std::string_view kWhole = "/metadata";
constexpr std::string_view kChanges = "/changes/";
constexpr size_t kVersion = 16;            // hexadecimal digits
constexpr size_t kMaxUnreadable = 10'000;  // names of which the reason is remembered

// How the metadata of the published package begins.
bool isPublished(const std::string& value) {
    return value.starts_with("nixlSerDes");
}

}  // namespace

std::shared_ptr<Directory> Directory::open(const std::shared_ptr<MetadataStore>& store,
                                           std::string root) {
    struct Open {
        const MetadataStore* store;
        std::string root;
        uint64_t epoch;
        std::weak_ptr<Directory> directory;
    };
    static constinit std::vector<Open>* open = nullptr;
    std::shared_ptr<Directory> made;
    std::vector<std::shared_ptr<Directory>> seen;  // let go of without the lock
    {
        const uint64_t epoch = base::forkEpoch();
        const MutexLock lock(base::processMutex(base::ProcessLock::STORES));
        if (open == nullptr) {
            open = new std::vector<Open>();
        }
        std::erase_if(*open, [](const Open& one) { return one.directory.expired(); });
        for (const Open& one : *open) {
            std::shared_ptr<Directory> known = one.directory.lock();
            if (known == nullptr) {
                continue;
            }
            seen.push_back(known);
            if (one.store == store.get() && one.root == root && one.epoch == epoch) {
                return known;
            }
        }
        made = std::make_shared<Directory>(store, root);
        open->push_back({store.get(), std::move(root), epoch, made});
    }
    made->follows_ = made->start();
    return made;
}

Directory::Directory(std::shared_ptr<MetadataStore> store, std::string root)
    : store_(std::move(store)), root_(std::move(root)), follows_(true) {}

Directory::~Directory() {
    watch_.reset();  // no event from here on
}

bool Directory::start() {
    watch_ = store_->watch(root_, [this](StoreEvent event) { onEvent(std::move(event)); });
    return watch_ != nullptr;
}

EntryPtr Directory::find(const std::string& name) const {
    const MutexLock lock(mutex_);
    const auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : found->second;
}

std::vector<std::string> Directory::names() const {
    std::vector<std::string> out;
    const MutexLock lock(mutex_);
    out.reserve(entries_.size());
    for (const auto& [name, entry] : entries_) {
        out.push_back(name);
    }
    return out;
}

size_t Directory::size() const {
    const MutexLock lock(mutex_);
    return entries_.size();
}

bool Directory::isSynced() const {
    const MutexLock lock(mutex_);
    return synced_;
}

Status Directory::trouble() const {
    const MutexLock lock(mutex_);
    return trouble_;
}

Status Directory::unreadable(const std::string& name) const {
    const MutexLock lock(mutex_);
    const auto found = unreadable_.find(name);
    return found == unreadable_.end() ? Status() : found->second;
}

void Directory::subscribe(const std::shared_ptr<Listener>& listener) {
    const MutexLock lock(mutex_);
    std::erase_if(listeners_, [](const auto& one) { return one.expired(); });
    listeners_.push_back(listener);
}

Directory::Listeners Directory::listeners() {
    Listeners out;
    const MutexLock lock(mutex_);
    for (const std::weak_ptr<Listener>& one : listeners_) {
        if (std::shared_ptr<Listener> listener = one.lock()) {
            out.push_back(std::move(listener));
        }
    }
    return out;
}

Directory::Place Directory::placeOf(const std::string& key) const {
    std::string_view rest(key);
    if (!rest.starts_with(root_)) {
        return {};
    }
    rest.remove_prefix(root_.size());
    // The established form has two slashes where the namespace is the default one.
    if (rest.starts_with('/')) {
        rest.remove_prefix(1);
    }
    if (rest.ends_with(kWhole) && rest.size() > kWhole.size()) {
        return {Kind::WHOLE, std::string(rest.substr(0, rest.size() - kWhole.size()))};
    }
    const size_t tail = kChanges.size() + kVersion;
    if (rest.size() > tail && rest.substr(rest.size() - tail, kChanges.size()) == kChanges) {
        return {Kind::CHANGE, std::string(rest.substr(0, rest.size() - tail))};
    }
    return {};
}

void Directory::onEvent(StoreEvent event) {
    if (event.kind != StoreEvent::Kind::FAILED) {
        const MutexLock lock(mutex_);
        trouble_ = {};
    }
    switch (event.kind) {
        case StoreEvent::Kind::PUT:
            return onPut(std::move(event.entry));
        case StoreEvent::Kind::REMOVED:
            return onRemoved(event.entry.key, false);
        case StoreEvent::Kind::SYNCED:
            return onSynced();
        case StoreEvent::Kind::RESET: {
            const MutexLock lock(mutex_);
            ++round_;  // what is not seen again has gone
            changes_.clear();
            return;
        }
        case StoreEvent::Kind::FAILED: {
            const MutexLock lock(mutex_);
            trouble_ = std::move(event.status);
            return;
        }
    }
}

void Directory::onPut(StoreEntry&& entry) {
    Place place = placeOf(entry.key);
    if (place.kind == Kind::WHOLE) {
        onWhole(place.name, std::move(entry));
    } else if (place.kind == Kind::CHANGE) {
        onChange(place.name, std::move(entry));
    }
}

Result<metadata::Blob> Directory::read(const std::string& name, const StoreEntry& entry) const {
    if (isPublished(entry.value)) {
        return Status::mismatch("agent \"" + name + "\" in " + store_->describe() +
                                " runs the published package, whose agents cannot talk to those "
                                "of this library");
    }
    Result<metadata::Blob> blob = metadata::decodeBlob(entry.value);
    if (!blob.ok()) {
        return Status(blob.status().code(),
                      store_->describe() + ", \"" + entry.key + "\": " + blob.status().message());
    }
    // A name that begins with a slash looks as if it were the separator's.
    if (blob.value().name != name && blob.value().name != "/" + name) {
        return Status::mismatch(store_->describe() + ", \"" + entry.key +
                                "\": metadata of an agent with another name, \"" +
                                blob.value().name + "\"");
    }
    return blob;
}

void Directory::refuse(const std::string& name, const std::string& key, const Status& why) {
    bool news = false;
    {
        const MutexLock lock(mutex_);
        news = unreadable_.size() < kMaxUnreadable && !unreadable_.contains(name);
        if (news) {
            unreadable_[name] = why;
        }
    }
    onRemoved(key, false);
    if (news) {
        const bool other = why.message().find("published package") != std::string::npos;
        base::log(other ? LogLevel::DEBUG : LogLevel::WARN, why.message() + "; it is left out");
    }
}

void Directory::onWhole(const std::string& name, StoreEntry&& entry) {
    if (entry.value == kWithdrawn) {
        return onRemoved(entry.key, true);
    }
    Result<metadata::Blob> blob = read(name, entry);
    if (!blob.ok()) {
        return refuse(name, entry.key, blob.status());
    }
    auto fresh = std::make_shared<DirectoryEntry>();
    fresh->who = {blob.value().name, blob.value().incarnation};
    fresh->key = std::move(entry.key);
    fresh->version = blob.value().version;
    fresh->blob = std::make_shared<const std::string>(std::move(entry.value));
    {
        const MutexLock lock(mutex_);
        unreadable_.erase(name);
        std::vector<const Change*> later;
        for (const auto& [key, change] : changes_[fresh->who.name]) {
            if (change.who == fresh->who) {
                later.push_back(&change);
            }
        }
        std::sort(later.begin(), later.end(),
                  [](const Change* a, const Change* b) { return a->version < b->version; });
        for (const Change* change : later) {
            if (change->version > fresh->version && change->base <= fresh->version) {
                fresh->changes.push_back(change->blob);
                fresh->version = change->version;
            }
        }
        if (changes_[fresh->who.name].empty()) {
            changes_.erase(fresh->who.name);
        }
    }
    enter(std::move(fresh));
}

void Directory::onChange(const std::string& name, StoreEntry&& entry) {
    Result<metadata::Blob> blob = read(name, entry);
    if (!blob.ok() || blob.value().version == 0) {
        return refuse(name, entry.key,
                      blob.ok() ? Status::invalidParam(store_->describe() + ", \"" + entry.key +
                                                       "\": a change without a version")
                                : blob.status());
    }
    Change change{{blob.value().name, blob.value().incarnation},
                  blob.value().base,
                  blob.value().version,
                  std::make_shared<const std::string>(std::move(entry.value))};
    std::shared_ptr<DirectoryEntry> fresh;
    {
        const MutexLock lock(mutex_);
        const auto found = entries_.find(change.who.name);
        if (found != entries_.end() && found->second->who == change.who &&
            found->second->round == round_ && change.base <= found->second->version &&
            change.version > found->second->version) {
            fresh = std::make_shared<DirectoryEntry>(*found->second);
            fresh->version = change.version;
            fresh->changes.push_back(change.blob);
        }
        changes_[change.who.name][entry.key] = std::move(change);
    }
    if (fresh != nullptr) {
        enter(std::move(fresh));
    }
}

void Directory::enter(std::shared_ptr<DirectoryEntry> entry) {
    EntryPtr now;
    EntryPtr before;
    {
        const MutexLock lock(mutex_);
        entry->round = round_;
        now = std::move(entry);
        EntryPtr& place = entries_[now->who.name];
        before = std::exchange(place, now);
        if (before != nullptr && before->key != now->key) {
            keys_.erase(before->key);
        }
        keys_[now->key] = now->who.name;
    }
    const bool same = before != nullptr && before->who == now->who &&
                      before->version == now->version && *before->blob == *now->blob;
    if (!same) {
        for (const auto& listener : listeners()) {
            listener->entered(now, before);
        }
    }
}

void Directory::onRemoved(const std::string& key, bool withdrawn) {
    const Place place = placeOf(key);
    EntryPtr was;
    {
        const MutexLock lock(mutex_);
        if (place.kind == Kind::CHANGE) {
            for (const std::string& name : {place.name, "/" + place.name}) {
                if (const auto found = changes_.find(name); found != changes_.end()) {
                    found->second.erase(key);
                    if (found->second.empty()) {
                        changes_.erase(found);
                    }
                }
            }
            return;
        }
        const auto found = keys_.find(key);
        if (found == keys_.end()) {
            return;
        }
        const auto entry = entries_.find(found->second);
        was = entry->second;
        entries_.erase(entry);
        keys_.erase(found);
    }
    for (const auto& listener : listeners()) {
        listener->left(was, withdrawn);
    }
}

void Directory::onSynced() {
    std::vector<std::string> gone;
    {
        const MutexLock lock(mutex_);
        synced_ = true;
        for (const auto& [name, entry] : entries_) {
            if (entry->round != round_) {
                gone.push_back(entry->key);
            }
        }
    }
    for (const std::string& key : gone) {
        onRemoved(key, false);
    }
    for (const auto& listener : listeners()) {
        listener->synced();
    }
}

}  // namespace nixl::exchange
