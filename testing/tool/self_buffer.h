// A buffer whose bytes are put and looked at through a second backend object of the plugin itself:
// for storage that a test has no other way to. Owned by the test; not thread-safe.
#pragma once

#include <memory>
#include <string>

#include "testing/conformance.h"

namespace nixl::testkit {

// Places of `type` called conformance-1, conformance-2, … in their metadata.
BufferMaker selfBuffers(const Subject& subject, MemType type);

// Places that are files `folder`/conformance-N, registered as `type` with that name in their
// metadata: for plugins that keep each object in a file.
BufferMaker folderBuffers(const std::string& folder, MemType type);

}  // namespace nixl::testkit
