// The conformance suite over UCX_MO: two engines of the real UCX library, over its transport tcp.
#include "nixl/plugin.h"

#include "testing/conformance.h"
#include "ucx/ucx_library.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using testkit::Subject;

std::string noLibrary() {
    const auto library = ucx::openUcx();
    return library.ok() ? "" : library.status().message();
}

Subject twoEngines() {
    Subject subject("UcxMo", "UCX_MO", Subject::NETWORK);
    subject.table = nixlPluginTable();
    subject.parameters = {
        {"lanes", "ucx"}, {"UCX_TLS", "tcp"}, {"ucx_devices", "lo"}, {"num_ucx_engines", "2"}};
    subject.unavailable = noLibrary;
    subject.deviations = {
        {"DescriptorsCloseOnExec", "the UCX library opens sockets of its own that are not"}};
    return subject;
}

const bool kJoined = testkit::joinConformance(twoEngines());

}  // namespace
}  // namespace nixl
