// The file `format` of a packed directory: the version of the layout, and the secret that its
// fingerprints are made with; `format.copy` beside it says the same. Stateless; any thread.
#pragma once

#include <string>

#include "nixl/error.h"

#include "hicache/fingerprint.h"

namespace nixl::hicache {

struct FormatOptions {
    HashSecret secret;  // for a new one; zero: by chance
    bool readOnly = false;
    unsigned fileMode = 0600;
};

// Reads ROOT/format; repairs it from the copy; makes it (unless `readOnly`) where there is none, or
// an empty one with nothing stored. Two processes may race: both end with the same secret. Without
// the secret nothing that is stored can be found: a damaged one is an error that says so.
Result<HashSecret> loadSecret(const std::string& root, const FormatOptions& options);

}  // namespace nixl::hicache
