// The file `format` of a packed directory: the version of the layout, and the secret that its
// fingerprints are made with. Stateless; any thread.
#pragma once

#include <string>

#include "nixl/error.h"

#include "hicache/fingerprint.h"

namespace nixl::hicache {

// Reads ROOT/format, or makes it (unless `read_only`) with `secret`, or with a new one where that
// is zero. Two processes may race: both end with the same secret.
Result<HashSecret> loadSecret(const std::string& root, HashSecret secret, bool read_only);

}  // namespace nixl::hicache
