// A directory as a central store for metadata, for the agents of one host and for tests: one file
// for each key, written beside and renamed, so that a crash leaves the old or the new value.
// Thread-safe, as MetadataStore.
#pragma once

#include <memory>
#include <string>

#include "exchange/store.h"

namespace nixl::exchange_file {

// `directory` may begin with "file:" or "file://". Makes it where there is none. What is put with
// Lifetime::OWNER counts while its process lives (a lock on the file; a forked child that lives on
// keeps it too).
Result<std::unique_ptr<exchange::MetadataStore>> makeFileStore(const std::string& where);

}  // namespace nixl::exchange_file
