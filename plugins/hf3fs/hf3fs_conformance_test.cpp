// The conformance suite over HF3FS and the stand-in of its client: copying and without copies,
// files by descriptor and by path.
#include <fcntl.h>

#include "hf3fs_test_support.h"
#include "testing/conformance.h"

namespace nixl::hf3fs {
namespace {

using testkit::FileMode;
using testkit::Subject;

Mount& mount() {
    static Mount made;
    return made;
}

Subject subject(const std::string& name, const std::string& config, FileMode mode) {
    Subject made("Hf3fs" + name, "HF3FS", Subject::STORAGE);
    made.table = &kPluginTable;
    made.parameters = {{"mount_point", mount().path()}, {"mem_config", config}};
    made.remote = [mode](uint64_t size) {
        return testkit::makeFileBuffer(size, mode, mount().path());
    };
    made.reposts = 200;
    made.largest = 16 << 20;
    return made;
}

Subject zeroCopy() {
    Subject made = subject("ZeroCopy", "dram_zc", FileMode::DESCRIPTOR);
    made.local = [](uint64_t size) { return std::make_unique<ShmBuffer>(size); };
    return made;
}

const bool kJoined[] = {
    testkit::joinConformance(subject("Copies", "dram", FileMode::DESCRIPTOR)),
    testkit::joinConformance(subject("Path", "auto", FileMode::PATH)),
    testkit::joinConformance(zeroCopy()),
};

}  // namespace
}  // namespace nixl::hf3fs
