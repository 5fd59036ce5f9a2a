// The conformance suite over lane mooncake: with the real engine by tcp over loopback, and with the
// stand-in of its C interface.
#include <cstdlib>

#include "nixl/plugin.h"

#include "mooncake_library.h"
#include "testing/conformance.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using testkit::Subject;

#ifndef NIXL_MOONCAKE_ADAPTER
#define NIXL_MOONCAKE_ADAPTER ""
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNDER_SANITIZER 1
#endif
#endif

std::string withoutEngine() {
#ifdef UNDER_SANITIZER
    return "the engine was not built for a sanitizer, and has another language's runtime in it";
#endif
    if (*NIXL_MOONCAKE_ADAPTER == '\0') {
        return "built without the PyPI package mooncake-transfer-engine-non-cuda";
    }
    setenv("NIXL_MOONCAKE_LIBRARY", NIXL_MOONCAKE_ADAPTER, 1);
    const auto library = mooncake::openMooncake();
    return library.ok() ? std::string() : library.status().message();
}

Subject realEngine() {
    Subject subject("Mooncake", "MOONCAKE", Subject::NETWORK);
    subject.table = nixlPluginTable();
    subject.parameters = {
        {"lanes", "mooncake"}, {"protocol", "tcp"}, {"local_hostname", "127.0.0.1"}};
    subject.unavailable = withoutEngine;
    subject.deviations = {
        {"DescriptorsCloseOnExec", "Mooncake opens its sockets without close-on-exec"}};
    return subject;
}

Subject standin() {
    Subject subject = realEngine();
    subject.name = "MooncakeStandin";
    subject.deviations.clear();
    subject.unavailable = [] {
        setenv("NIXL_MOONCAKE_LIBRARY", NIXL_MOONCAKE_STANDIN, 1);
        return std::string();
    };
    return subject;
}

const bool kReal = testkit::joinConformance(realEngine());
const bool kStandin = testkit::joinConformance(standin());

}  // namespace
}  // namespace nixl
