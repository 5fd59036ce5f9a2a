// The conformance suite over UCX: the lane between agents of one process, inline and queued.
#include "nixl/plugin.h"

#include "testing/conformance.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using testkit::Subject;

Subject ucx(const std::string& name) {
    Subject subject(name, "UCX", Subject::NETWORK);
    subject.table = nixlPluginTable();
    return subject;
}

const bool kJoined = testkit::joinConformance(ucx("Ucx"));

}  // namespace
}  // namespace nixl
