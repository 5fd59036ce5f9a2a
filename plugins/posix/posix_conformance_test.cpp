// The conformance suite over POSIX: each engine, files by descriptor, by path, and unbuffered.
#include <fcntl.h>

#include "posix_backend.h"
#include "testing/conformance.h"

namespace nixl::posix {
namespace {

using testkit::FileMode;
using testkit::Subject;

Subject subject(const std::string& name, const std::string& engine, int open_flags) {
    Subject made("Posix" + name, "POSIX", Subject::STORAGE);
    made.table = &kPluginTable;
    made.parameters = {{engine, "true"}};
    made.remote = [open_flags](uint64_t size) {
        return testkit::makeFileBuffer(size, FileMode::DESCRIPTOR, {}, open_flags);
    };
    made.reposts = 200;
    made.largest = 16 << 20;
    return made;
}

Subject byPath() {
    Subject made = subject("Path", "use_threads", 0);
    made.remote = [](uint64_t size) { return testkit::makeFileBuffer(size, FileMode::PATH); };
    made.largest = 64 << 20;
    made.reposts = 1000;
    return made;
}

const bool kJoined[] = {
    testkit::joinConformance(subject("Buffered", "use_threads", 0)),
    testkit::joinConformance(byPath()),
    testkit::joinConformance(subject("AioDirect", "use_aio", O_DIRECT)),
    testkit::joinConformance(subject("UringDirect", "use_uring", O_DIRECT)),
    testkit::joinConformance(subject("PosixAioDirect", "use_posix_aio", O_DIRECT)),
    testkit::joinConformance(subject("ThreadsDirect", "use_threads", O_DIRECT)),
};

}  // namespace
}  // namespace nixl::posix
