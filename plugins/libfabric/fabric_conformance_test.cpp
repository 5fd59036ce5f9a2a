// The conformance suite over lane fabric with the real library, by tcp over loopback.
// SKIP where the library is not installed.
#include "nixl/plugin.h"

#include "fabric_library.h"
#include "testing/conformance.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using testkit::Subject;

Subject subjectOf(const std::string& name, const std::map<std::string, std::string>& parameters) {
    Subject subject(name, "LIBFABRIC", Subject::NETWORK);
    subject.table = nixlPluginTable();
    subject.parameters = parameters;
    subject.parameters["lanes"] = "fabric";
    return subject;
}

Subject withLibrary(Subject subject) {
    subject.unavailable = [] {
        const auto library = fabric::openFabricLibrary();
        return library.ok() ? std::string() : library.status().message();
    };
    return subject;
}

Subject tcp() {
    Subject subject =
        withLibrary(subjectOf("FabricTcp", {{"provider", "tcp"}, {"device_list", "lo"}}));
    subject.deviations = {
        {"DescriptorsCloseOnExec", "libfabric opens its sockets without close-on-exec"}};
    return subject;
}

const bool kTcp = testkit::joinConformance(tcp());

}  // namespace
}  // namespace nixl
