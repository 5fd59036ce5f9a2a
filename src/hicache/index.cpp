// See index.h.
#include "hicache/index.h"

namespace nixl::hicache {

Index::Index() : table_(1024, kNone) {}

uint32_t Index::find(const Fingerprint& key) const noexcept {
    const size_t mask = table_.size() - 1;
    for (size_t at = home(key); table_[at] != kNone; at = (at + 1) & mask) {
        if (entries_[table_[at]].key == key) {
            return table_[at];
        }
    }
    return kNone;
}

size_t Index::bucketOf(uint32_t id) const noexcept {
    const size_t mask = table_.size() - 1;
    size_t at = home(entries_[id].key);
    while (table_[at] != id) {
        at = (at + 1) & mask;
    }
    return at;
}

uint32_t Index::insert(const Fingerprint& key) {
    if ((count_ + 1) * 2 > table_.size()) {
        grow();
    }
    uint32_t id = 0;
    if (free_.empty()) {
        id = static_cast<uint32_t>(entries_.size());
        entries_.emplace_back();
    } else {
        id = free_.back();
        free_.pop_back();
        entries_[id] = Entry{};
    }
    entries_[id].key = key;
    entries_[id].used = true;
    const size_t mask = table_.size() - 1;
    size_t at = home(key);
    while (table_[at] != kNone) {
        at = (at + 1) & mask;
    }
    table_[at] = id;
    ++count_;
    linkNewest(id);
    return id;
}

void Index::erase(uint32_t id) {
    // Backward-shift deletion: pull every follower home that may move into the hole.
    const size_t mask = table_.size() - 1;
    size_t hole = bucketOf(id);
    table_[hole] = kNone;
    for (size_t at = (hole + 1) & mask; table_[at] != kNone; at = (at + 1) & mask) {
        const size_t wanted = home(entries_[table_[at]].key);
        if (((at - wanted) & mask) >= ((at - hole) & mask)) {
            table_[hole] = table_[at];
            table_[at] = kNone;
            hole = at;
        }
    }
    unlink(id);
    entries_[id].used = false;
    entries_[id].version = 0;
    free_.push_back(id);
    --count_;
}

void Index::touch(uint32_t id) {
    if (newest_ != id) {
        unlink(id);
        linkNewest(id);
    }
}

void Index::unlink(uint32_t id) {
    Entry& entry = entries_[id];
    (entry.newer == kNone ? newest_ : entries_[entry.newer].older) = entry.older;
    (entry.older == kNone ? oldest_ : entries_[entry.older].newer) = entry.newer;
    entry.newer = entry.older = kNone;
}

void Index::linkNewest(uint32_t id) {
    Entry& entry = entries_[id];
    entry.newer = kNone;
    entry.older = newest_;
    if (newest_ != kNone) {
        entries_[newest_].newer = id;
    }
    newest_ = id;
    if (oldest_ == kNone) {
        oldest_ = id;
    }
}

void Index::grow() {
    std::vector<uint32_t> old = std::move(table_);
    table_.assign(old.size() * 2, kNone);
    const size_t mask = table_.size() - 1;
    for (const uint32_t id : old) {
        if (id != kNone) {
            size_t at = home(entries_[id].key);
            while (table_[at] != kNone) {
                at = (at + 1) & mask;
            }
            table_[at] = id;
        }
    }
}

}  // namespace nixl::hicache
