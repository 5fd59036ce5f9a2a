// The conformance suite over GDS: the real cuFile in compat mode, host memory, files of tmpfs.
#include "gds_test_support.h"

namespace nixl::gds {
namespace {

const bool kJoined[] = {
    testkit::joinConformance(conformanceSubject("Gds", kGdsTable, testkit::FileMode::DESCRIPTOR)),
    testkit::joinConformance(conformanceSubject("GdsPath", kGdsTable, testkit::FileMode::PATH)),
};

}  // namespace
}  // namespace nixl::gds
