// What the tests of GDS and GDS_MT share: where the real cuFile is, and their conformance subjects.
// Tests only; any thread.
#pragma once

#include <string>

#include "gds_tables.h"
#include "testing/conformance.h"

namespace nixl::gds {

// Points NIXL_CUFILE_LIBRARY to the real cuFile where it is not set, and its log to a temporary
// folder. Empty, or why there is none.
std::string findRealCuFile();

inline testkit::Subject conformanceSubject(const std::string& name,
                                           const PluginTable& table,
                                           testkit::FileMode mode) {
    testkit::Subject made(name, table.name, testkit::Subject::STORAGE);
    made.table = &table;
    made.remote = [mode](uint64_t size) { return testkit::makeFileBuffer(size, mode, "/dev/shm"); };
    made.reposts = 200;
    made.largest = 16 << 20;
    made.slowParameters = {{"max_request_size", "4096"}};
    made.unavailable = findRealCuFile;
    return made;
}

}  // namespace nixl::gds
