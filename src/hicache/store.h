// The packed store of HiCache: many blocks in few append-only files, over one or several storage
// directories. It finds and reserves extents and keeps the books; the payload itself is moved by
// the caller (through an agent's transfers), between reserve and commit, or find and confirm.
// Thread-safe; every process opens its own. After fork() every call in the child is refused.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "hicache/directory.h"

namespace nixl::hicache {

struct StoreOptions {
    std::vector<std::string> directories;
    DirectoryOptions directory;  // maxBytes here is the cap over all directories
};

// A segment of one of the directories, as one number that descriptors can carry.
constexpr uint64_t deviceOf(uint16_t directory, uint32_t segment) {
    return (static_cast<uint64_t>(directory) + 1) << 32 | segment;
}

class Store {
  public:
    static Result<std::unique_ptr<Store>> open(const StoreOptions& options);

    // A item per key, with its fingerprint and directory. `keep_names`: for reserve(); `scope`:
    // whose key it is, see scopeOf.
    void addKey(Batch& batch, std::string_view key, bool keep_names, uint32_t scope = 0) const;

    Status find(Batch& batch);
    Status confirm(Batch& batch);
    // The leading keys that are stored.
    Result<size_t> containsPrefix(Batch& batch);
    // Items' lengths must be set. An error is that of the first directory that refused; its items
    // are REFUSED and the others go on.
    Status reserve(Batch& batch, bool replace);
    Status commit(Batch& batch);
    // Gives back what a batch still holds (a caller that gave up).
    void abandon(Batch& batch);
    Status forgetCorrupt(Batch& batch);
    Status erase(const std::vector<std::string>& keys);
    Status clear();  // of all owners
    Status clearOwners(const std::vector<std::string>& owners);
    // Gives the room of every dead extent back, for a disk that is full; how many bytes that was.
    Result<uint64_t> reclaimDead();
    // Evicts the least recently used blocks of this process, until `bytes` of all writers are left
    // in a directory; how many bytes of them went.
    Result<uint64_t> trim(uint64_t bytes, size_t directory);
    // The same for the whole store: each directory keeps its part of what it has.
    Result<uint64_t> trim(uint64_t bytes);
    Result<bool> maintain(double dead_fraction);

    // One row per part of every item in state `wanted`, on both sides; the item's length must be
    // the sum of its parts (else it becomes SIZE). Neighbours in both are joined.
    void describe(Batch& batch,
                  ItemState wanted,
                  std::span<const Part> parts,
                  size_t per_item,
                  std::vector<Row>& local,
                  std::vector<Row>& remote) const;
    // Writes NEW items, giving them their checksum, or reads HIT items, comparing it with `verify`;
    // by vectored calls of its own. What fails is FAILED, CORRUPT or (another length) SIZE by
    // itself; the status is that of the first that the system refused.
    Status move(Batch& batch,
                ItemState wanted,
                std::span<const Part> parts,
                size_t per_item,
                bool verify,
                bool direct);
    // NEW items get the checksum of their parts; HIT items that differ become CORRUPT.
    void checksum(Batch& batch, std::span<const Part> parts, size_t per_item) const;

    std::string segmentPath(uint64_t device) const;
    bool segmentDropped(uint64_t device) const;
    std::vector<std::string> takeDroppedSegments();
    size_t directoryCount() const { return directories_.size(); }
    Directory& directory(size_t i) { return *directories_[i]; }

  private:
    Store() = default;
    Status checkProcess() const;

    std::vector<std::unique_ptr<Directory>> directories_;
    pid_t process_ = 0;
};

}  // namespace nixl::hicache
