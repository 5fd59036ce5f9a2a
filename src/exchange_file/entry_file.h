// One file of the store: its name, and what is in it. Functions; nothing is kept.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "nixl/error.h"

#include "base/descriptor.h"
#include "exchange/store.h"

namespace nixl::exchange_file {

// The file's name for a key: readable where it can be.
std::string fileName(const std::string& key);
// Whether files of the store have such names.
bool isEntryName(std::string_view name);

struct FileEntry {
    exchange::StoreEntry entry;
    bool owned = false;  // counts only while its owner lives
};

std::string encodeEntry(const FileEntry& file);
// `path` is for the message.
Result<FileEntry> decodeEntry(const std::string& bytes, const std::string& path);

// Holds the directory's lock while it lives: for renaming and removing.
Result<base::Fd> lockDirectory(const std::string& directory);
// Reads a file; empty where there is none, or its owner has gone (then the file goes too).
Result<std::optional<FileEntry>> readEntry(const std::string& directory, const std::string& name);
// Writes it beside, with its owner's lock, and puts it in place. The descriptor holds the lock.
Result<base::Fd> writeEntry(const std::string& directory, const FileEntry& file);
Status removeEntry(const std::string& directory, const std::string& name);

}  // namespace nixl::exchange_file
