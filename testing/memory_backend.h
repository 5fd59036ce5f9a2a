// The test backend MEMORY: copies between host memory of one process, inline or on the copy pool,
// with notifications, peers and limits. As small as a network backend can be, for tests of the
// core and of the conformance suite itself. The table is constant; backends as nixl/backend.h.
#pragma once

#include "nixl/plugin.h"

namespace nixl::testkit {

// Parameters: inline_limit (copies up to so many bytes end inside post), delay (a queued copy
// starts so much later), manual (it waits for progress()), max_regions, max_pending.
const PluginTable& memoryBackendTable();

}  // namespace nixl::testkit
