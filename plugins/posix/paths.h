// Files by their paths: what a registration's metadata says, and what query_memory, list_storage
// and remove_storage do. All backends of files have it. Pure calls of the system; any thread.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>

#include "nixl/backend.h"

namespace nixl::posix {

// `plugin` is the name that messages bear.

// What a registration's metadata says: "rw,create,direct:/path", or nothing but a label.
struct FileSpec {
    std::string path;
    bool write = false;
    bool direct = false;
    bool create = false;
};

// nullopt: a label only. An error: begins with ro or rw, but cannot be understood.
Result<std::optional<FileSpec>> parseFileSpec(std::string_view metadata,
                                              const char* plugin = "POSIX");

// What query() tells of one region: nullopt where there is no such file.
Result<std::optional<std::map<std::string, std::string>>> queryFile(const MemoryRegion& region,
                                                                    const char* plugin = "POSIX");
std::map<std::string, std::string> attributesOf(const struct ::stat& info);
// At most `limit` regular files whose path begins with `prefix`, in all folders below it.
Result<std::vector<StorageEntry>> listFiles(std::string_view prefix,
                                            size_t limit,
                                            const char* plugin = "POSIX");
// Removes a regular file; `name` is a path, with or without a "rw:" in front.
Status removeFile(std::string_view name, const char* plugin = "POSIX");

}  // namespace nixl::posix
