// The test backend OBJECTS: an object store in memory, shared by the backends of the process that
// name the same bucket. As small as a storage backend can be. Backends as nixl/backend.h; the
// store is thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/plugin.h"

#include "base/mutex.h"
#include "testing/buffers.h"

namespace nixl::testkit {

class ObjectStore {
  public:
    // The store of this name, kept as long as somebody uses it.
    static std::shared_ptr<ObjectStore> open(const std::string& bucket);

    // How many bytes there are from `offset`, at most `bytes.size()`; nullopt: no such object.
    std::optional<uint64_t> get(std::string_view key, uint64_t offset, std::span<uint8_t> bytes);
    // False where the object would be larger than `most`.
    bool put(std::string_view key, uint64_t offset, std::span<const uint8_t> bytes, uint64_t most);
    std::optional<uint64_t> size(std::string_view key);
    void resize(std::string_view key, uint64_t size);
    bool remove(std::string_view key);
    std::vector<std::string> keys(std::string_view prefix, size_t limit);

  private:
    Mutex mutex_;
    std::map<std::string, std::vector<uint8_t>, std::less<>> objects_ NIXL_GUARDED_BY(mutex_);
};

// Parameters: bucket, max_object (limit of an object's size), use_pool (else inside post).
const PluginTable& objectBackendTable();

// An object of `size` bytes in `bucket`, removed with the buffer.
std::unique_ptr<Buffer> makeObjectBuffer(const std::string& bucket,
                                         const std::string& key,
                                         uint64_t size);

}  // namespace nixl::testkit
