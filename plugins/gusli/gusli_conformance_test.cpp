// The conformance suite over GUSLI: files as devices, a loop device, and a server
// of the stand-in of the GUSLI client.
#include <atomic>
#include <mutex>
#include <set>

#include "gusli_test_support.h"
#include "testing/conformance.h"

namespace nixl::gusli {
namespace {

using testkit::Subject;

constexpr unsigned kFiles = 64;
constexpr uint64_t kDeviceBytes = 4ULL << 30;  // sparse

// Made when the first check runs, gone when the program ends.
struct Place {
    TempFolder folder;
    LoopDevice loop{kDeviceBytes};
    std::atomic<uint64_t> next{0};  // place on the loop device

    uint64_t take() {
        const std::lock_guard lock(mutex);
        const uint64_t id = *free.begin();
        free.erase(free.begin());
        return id;
    }
    void give(uint64_t id) {
        const std::lock_guard lock(mutex);
        free.insert(id);
    }

    Place() {
        for (uint64_t id = 0; id < kFiles; ++id) {
            free.insert(id);
        }
    }
    std::mutex mutex;  // guards the files that no buffer uses
    std::set<uint64_t> free;
};

Place& place() {
    static Place made;
    return made;
}

class FileDevice final : public BlockBuffer {
  public:
    FileDevice(uint64_t id, uint64_t size)
        : BlockBuffer(place().folder / std::to_string(id), id, 0, size, true), number_(id) {}
    ~FileDevice() override { place().give(number_); }
    FileDevice(const FileDevice&) = delete;
    FileDevice& operator=(const FileDevice&) = delete;

  private:
    const uint64_t number_;
};

std::string list() {
    std::string text = "version=1\n100 K W D " + place().loop.path() + " sec=0x7\n";
    if (place().loop.path().empty()) {
        text = "version=1\n";
    }
    for (unsigned i = 0; i < kFiles; ++i) {
        text += std::to_string(i) + " F W N " + (place().folder / std::to_string(i)) + " sec=0x3\n";
    }
    return text;
}

Subject subject(const std::string& name) {
    Subject made("Gusli" + name, "GUSLI", Subject::STORAGE);
    made.table = &kPluginTable;
    made.parameters = {{"config_file", list()}};
    made.granularity = kBlock;
    made.reposts = 200;
    made.largest = 16 << 20;
    return made;
}

Subject files() {
    Subject made = subject("File");
    made.remote = [](uint64_t size) { return std::make_unique<FileDevice>(place().take(), size); };
    return made;
}

Subject loop() {
    Subject made = subject("Loop");
    made.remote = [](uint64_t size) {
        const uint64_t room = (size + kBlock - 1) / kBlock * kBlock;
        uint64_t at = place().next.fetch_add(room + kBlock) / kBlock * kBlock;
        at %= kDeviceBytes - (64ULL << 20);
        return std::make_unique<BlockBuffer>(place().loop.path(), 100, at, size, false);
    };
    made.deviations = {{"QueryTellsWhatIsThere", "the size is that of the whole device"}};
    made.unavailable = [] {
        return place().loop.path().empty() ? std::string(LoopDevice::kNone) : std::string();
    };
    return made;
}

// A server of the stand-in of the GUSLI client serves a file.
struct Served {
    TempFolder folder;
    std::atomic<uint64_t> next{0};
    Served() {
        setenv("NIXL_GUSLI_LIBRARY", NIXL_GUSLI_STANDIN, 1);
        std::ofstream(folder / "disk").close();
        std::filesystem::resize_file(folder / "disk", kDeviceBytes);
    }
};

Served& served() {
    static Served made;
    return made;
}

Subject client() {
    Subject made("GusliClient", "GUSLI", Subject::STORAGE);
    made.table = &kPluginTable;
    made.parameters = {
        {"config_file", "version=1\n100 N W D " + (served().folder / "disk") + " sec=0x7\n"}};
    made.granularity = kBlock;
    made.reposts = 200;
    made.largest = 16 << 20;
    made.remote = [](uint64_t size) {
        const uint64_t room = (size + kBlock - 1) / kBlock * kBlock;
        uint64_t at = served().next.fetch_add(room + kBlock) / kBlock * kBlock;
        at %= kDeviceBytes - (64ULL << 20);
        return std::make_unique<BlockBuffer>(served().folder / "disk", 100, at, size, false);
    };
    made.deviations = {{"QueryTellsWhatIsThere", "the size is that of the whole device"}};
    return made;
}

const bool kJoined[] = {testkit::joinConformance(files()), testkit::joinConformance(loop()),
                        testkit::joinConformance(client())};

}  // namespace
}  // namespace nixl::gusli
