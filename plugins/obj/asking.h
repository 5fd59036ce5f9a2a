// Looking at the store: what is there, listing, removing. Each call waits for the store.
//
// Threads: thread-safe.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"

#include "s3.h"

namespace nixl::obj {

using Attributes = std::map<std::string, std::string>;

// One entry for each key: nothing where there is no such object.
Result<std::vector<std::optional<Attributes>>> lookAt(Store& store,
                                                      const std::vector<std::string>& keys);
Result<std::vector<StorageEntry>> listObjects(Store& store, std::string_view prefix, size_t limit);
// How each of the names ended.
std::vector<Status> removeObjects(Store& store, std::span<const std::string> keys);

}  // namespace nixl::obj
