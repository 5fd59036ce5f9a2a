// The conformance suite over GDS_MT: the real cuFile in compat mode, host memory, files of tmpfs.
#include "gds_test_support.h"

namespace nixl::gds {
namespace {

using testkit::FileMode;

const bool kJoined[] = {
    testkit::joinConformance(conformanceSubject("GdsMt", kGdsMtTable, FileMode::DESCRIPTOR)),
    testkit::joinConformance(conformanceSubject("GdsMtPath", kGdsMtTable, FileMode::PATH)),
};

}  // namespace
}  // namespace nixl::gds
