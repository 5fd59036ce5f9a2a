// See store.h.
#include "hicache/store.h"

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <unordered_map>
#include <utility>

#include <unistd.h>

#include "base/crc32c.h"
#include "hicache/checksums.h"
#include "hicache/payload.h"

namespace nixl::hicache {

Result<std::unique_ptr<Store>> Store::open(const StoreOptions& options) {
    if (options.directories.empty() || options.directories.size() > UINT16_MAX) {
        return Status::invalidParam("packed store: " + std::to_string(options.directories.size()) +
                                    " directories; at least one is needed");
    }
    std::unique_ptr<Store> store(new Store());
    store->process_ = getpid();
    DirectoryOptions each = options.directory;
    if (each.maxBytes != 0) {
        each.maxBytes = std::max<uint64_t>(each.maxBytes / options.directories.size(), kAlignment);
        // Room comes back by whole segments where a file system has no holes: keep them small.
        each.segmentBytes =
            std::min(each.segmentBytes, std::max<uint64_t>(each.maxBytes / 8, 1ULL << 20));
    }
    for (const std::string& path : options.directories) {
        auto directory = Directory::open(path, each);
        if (!directory.ok()) {
            return directory.status();
        }
        store->directories_.push_back(std::move(directory).value());
    }
    return store;
}

Status Store::checkProcess() const {
    const pid_t now = getpid();
    if (now != process_) {
        return Status::notAllowed("packed store: opened by process " + std::to_string(process_) +
                                  ", used by its fork " + std::to_string(now) +
                                  "; open it again there");
    }
    return {};
}

void Store::addKey(Batch& batch, std::string_view key, bool keep_names, uint32_t scope) const {
    Item item;
    item.scope = scope;
    if (key.size() > kMaxKeyBytes) {  // a miss, and refused: at its place only
        item.directory = kNoDirectory;
        batch.items.push_back(item);
        if (keep_names) {
            batch.nameEnds.push_back(batch.names.size());
        }
        return;
    }
    if (directories_.size() > 1) {
        item.directory = static_cast<uint16_t>(base::crc32c(key) % directories_.size());
    }
    item.key = fingerprint(directories_[item.directory]->secret(), key);
    batch.items.push_back(item);
    if (keep_names) {
        batch.names.append(key);
        batch.nameEnds.push_back(batch.names.size());
    }
}

Status Store::find(Batch& batch) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    for (size_t i = 0; i < directories_.size(); ++i) {
        directories_[i]->find(batch, static_cast<uint16_t>(i));
    }
    return {};
}

Status Store::confirm(Batch& batch) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    for (size_t i = 0; i < directories_.size(); ++i) {
        directories_[i]->confirm(batch, static_cast<uint16_t>(i));
        directories_[i]->probe(batch, static_cast<uint16_t>(i));
    }
    return {};
}

Result<size_t> Store::containsPrefix(Batch& batch) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    if (directories_.size() == 1) {
        return directories_[0]->containsPrefix(batch);
    }
    NIXL_RETURN_IF_ERROR(find(batch));
    const auto end = std::find_if(batch.items.begin(), batch.items.end(),
                                  [](const Item& item) { return item.state != ItemState::HIT; });
    return static_cast<size_t>(end - batch.items.begin());
}

Status Store::reserve(Batch& batch, bool replace) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    Status first;
    for (Item& item : batch.items) {
        if (item.directory == kNoDirectory) {
            item.state = ItemState::REFUSED;
            first = Status::invalidParam("a key of more than " + std::to_string(kMaxKeyBytes) +
                                         " bytes (with model, rank and format) is not stored");
        }
    }
    for (size_t i = 0; i < directories_.size(); ++i) {
        const Status status = directories_[i]->reserve(batch, static_cast<uint16_t>(i), replace);
        if (first.ok() && !status.ok()) {
            first = status;
        }
    }
    return first;
}

Status Store::commit(Batch& batch) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    Status first;
    for (size_t i = 0; i < directories_.size(); ++i) {
        const Status status = directories_[i]->commit(batch, static_cast<uint16_t>(i));
        if (first.ok() && !status.ok()) {
            first = status;
        }
    }
    return first;
}

void Store::abandon(Batch& batch) {
    bool held = false;
    for (Item& item : batch.items) {
        if (item.held) {
            item.state = ItemState::FAILED;
            held = true;
        }
    }
    if (held) {
        const Status status = commit(batch);
        static_cast<void>(status);  // nothing is stored by it
    }
}

Status Store::forgetCorrupt(Batch& batch) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    for (size_t i = 0; i < directories_.size(); ++i) {
        directories_[i]->forget(batch, static_cast<uint16_t>(i));
    }
    return {};
}

Status Store::erase(const std::vector<std::string>& keys) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    Batch batch;
    for (const std::string& key : keys) {
        addKey(batch, key, false);
    }
    for (size_t i = 0; i < directories_.size(); ++i) {
        std::vector<Fingerprint> mine;
        for (const Item& item : batch.items) {
            if (item.directory == i) {
                mine.push_back(item.key);
            }
        }
        NIXL_RETURN_IF_ERROR(directories_[i]->erase(mine));
    }
    return {};
}

Status Store::clear() {
    NIXL_RETURN_IF_ERROR(checkProcess());
    for (const auto& directory : directories_) {
        NIXL_RETURN_IF_ERROR(directory->clear());
    }
    return {};
}

Status Store::clearOwners(const std::vector<std::string>& owners) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    for (const auto& directory : directories_) {
        NIXL_RETURN_IF_ERROR(directory->clearOwners(owners));
    }
    return {};
}

Result<uint64_t> Store::reclaimDead() {
    NIXL_RETURN_IF_ERROR(checkProcess());
    uint64_t bytes = 0;
    for (const auto& directory : directories_) {
        bytes += directory->reclaimDead();
    }
    return bytes;
}

Result<uint64_t> Store::trim(uint64_t bytes, size_t directory) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    if (directory >= directories_.size()) {
        return Status::invalidParam("directory " + std::to_string(directory) + ": the store has " +
                                    std::to_string(directories_.size()));
    }
    return directories_[directory]->shrink(bytes);
}

Result<uint64_t> Store::trim(uint64_t bytes) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    std::vector<uint64_t> live;
    for (const auto& directory : directories_) {
        live.push_back(directory->stats().liveBytes);
    }
    const auto all = static_cast<double>(std::accumulate(live.begin(), live.end(), uint64_t{0}));
    uint64_t gone = 0;
    for (size_t i = 0; i < live.size() && static_cast<double>(bytes) < all; ++i) {
        const double part = static_cast<double>(live[i]) / all;
        auto some =
            directories_[i]->shrink(static_cast<uint64_t>(part * static_cast<double>(bytes)));
        if (!some.ok()) {
            return some;
        }
        gone += some.value();
    }
    return gone;
}

Result<bool> Store::maintain(double dead_fraction) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    bool more = false;
    for (const auto& directory : directories_) {
        auto again = directory->maintain(dead_fraction);
        if (!again.ok()) {
            return again;
        }
        more = more || again.value();
    }
    return more;
}

namespace {

uint64_t lengthOf(std::span<const Part> parts) {
    uint64_t total = 0;
    for (const Part& part : parts) {
        total += part.length;
    }
    return total;
}

void join(std::vector<Row>& local, std::vector<Row>& remote, const Row& from, const Row& to) {
    if (!local.empty()) {
        Row& near = local.back();
        Row& far = remote.back();
        if (near.address + near.length == from.address && near.device == from.device &&
            far.address + far.length == to.address && far.device == to.device) {
            near.length += from.length;
            far.length += to.length;
            return;
        }
    }
    local.push_back(from);
    remote.push_back(to);
}

// Whether an item is in this state and its parts are as long as it is; SIZE where they are not.
bool fits(Item& item, ItemState wanted, std::span<const Part> parts) {
    if (item.state != wanted) {
        return false;
    }
    if (lengthOf(parts) != item.length) {
        item.state = ItemState::SIZE;
        return false;
    }
    return true;
}

}  // namespace

void Store::describe(Batch& batch,
                     ItemState wanted,
                     std::span<const Part> parts,
                     size_t per_item,
                     std::vector<Row>& local,
                     std::vector<Row>& remote) const {
    local.reserve(parts.size());
    remote.reserve(parts.size());
    for (size_t i = 0; i < batch.items.size(); ++i) {
        Item& item = batch.items[i];
        const auto mine = parts.subspan(i * per_item, per_item);
        if (!fits(item, wanted, mine)) {
            continue;
        }
        const uint64_t device = deviceOf(item.directory, item.segment);
        uint64_t offset = item.offset;
        for (const Part& part : mine) {
            if (part.length == 0) {
                continue;
            }
            join(local, remote, {part.address, part.length, part.device},
                 {offset, part.length, device});
            offset += part.length;
        }
    }
}

void Store::checksum(Batch& batch, std::span<const Part> parts, size_t per_item) const {
    std::vector<Part> picked;
    std::vector<size_t> items;
    picked.reserve(parts.size());
    for (size_t i = 0; i < batch.items.size(); ++i) {
        if (batch.items[i].state == ItemState::NEW || batch.items[i].state == ItemState::HIT) {
            items.push_back(i);
            const auto mine = parts.subspan(i * per_item, per_item);
            picked.insert(picked.end(), mine.begin(), mine.end());
        }
    }
    std::vector<uint32_t> sums(items.size());
    checksumBlocks(picked, per_item, sums);
    for (size_t i = 0; i < items.size(); ++i) {
        Item& item = batch.items[items[i]];
        if (item.state == ItemState::NEW) {
            item.checksum = sums[i];
        } else if (item.checksum != sums[i]) {
            item.state = ItemState::CORRUPT;
        }
    }
}

Status Store::move(Batch& batch,
                   ItemState wanted,
                   std::span<const Part> parts,
                   size_t per_item,
                   bool verify,
                   bool direct) {
    NIXL_RETURN_IF_ERROR(checkProcess());
    std::unordered_map<uint64_t, std::string> paths;
    std::vector<Piece> pieces;
    pieces.reserve(batch.items.size());
    for (size_t i = 0; i < batch.items.size(); ++i) {
        Item& item = batch.items[i];
        const auto mine = parts.subspan(i * per_item, per_item);
        if (!fits(item, wanted, mine)) {
            continue;
        }
        const uint64_t device = deviceOf(item.directory, item.segment);
        const auto [path, fresh] = paths.try_emplace(device);
        if (fresh) {
            path->second = segmentPath(device);
        }
        pieces.push_back({&item, mine, &path->second});
    }
    const bool write = wanted == ItemState::NEW;
    const MoveOptions options{.write = write, .checksums = write || verify, .direct = direct};
    if (!write) {
        return movePieces(std::move(pieces), options);
    }
    Status status = movePieces(pieces, options);
    if (status.systemErrno() != ENOSPC) {
        return status;
    }
    const auto room = reclaimDead();
    if (!room.ok() || room.value() == 0) {
        return status;
    }
    std::erase_if(pieces, [](const Piece& p) { return p.item->state != ItemState::FAILED; });
    for (const Piece& piece : pieces) {
        piece.item->state = wanted;
    }
    return movePieces(std::move(pieces), options);
}

std::string Store::segmentPath(uint64_t device) const {
    const uint64_t directory = (device >> 32) - 1;
    return directory < directories_.size()
               ? directories_[directory]->segmentPath(static_cast<uint32_t>(device))
               : std::string();
}

bool Store::segmentDropped(uint64_t device) const {
    const uint64_t directory = (device >> 32) - 1;
    return directory >= directories_.size() ||
           directories_[directory]->segmentDropped(static_cast<uint32_t>(device));
}

std::vector<std::string> Store::takeDroppedSegments() {
    std::vector<std::string> out;
    for (const auto& directory : directories_) {
        for (std::string& path : directory->takeDroppedSegments()) {
            out.push_back(std::move(path));
        }
    }
    return out;
}

}  // namespace nixl::hicache
