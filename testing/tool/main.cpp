// nixl_conformance: the conformance suite over any plugin, also one built elsewhere.
#include <cstdio>
#include <cstdlib>
#include <string>

#include <gtest/gtest.h>

#include "backend/plugins.h"
#include "testing/conformance.h"
#include "testing/tool/self_buffer.h"

namespace {

using nixl::MemType;
using nixl::testkit::Subject;

constexpr const char* kUsage =
    R"(nixl_conformance PLUGIN [OPTION…]: tries what a backend promises (docs/backend_guide.md)
  NIXL_PLUGIN_DIR=FOLDER     (environment) where libplugin_<name>.so lies
  --param=KEY=VALUE          a parameter of the backend; may stand several times
  --slow-param=KEY=VALUE     … only where a transfer has to stay in progress for a while
  --remote=memory            the other side is memory: a network backend (the default)
  --remote=file | path       … a file, by descriptor or by "rw:/path": a storage backend
  --remote=folder:DIR        … an object, which the plugin keeps as the file DIR/<key>
  --remote=self:OBJ          … an object (or BLOCK, FILE), looked at through the plugin itself
  --largest=BYTES            of one transfer, default 67108864
  --granularity=BYTES        what lengths must be a multiple of, default 1
  --deviation=CHECK=REASON   a check that the backend is known not to pass
  and GoogleTest's own: --gtest_list_tests, --gtest_filter=…, --gtest_help
)";

[[noreturn]] void usage(const std::string& mistake) {
    std::fprintf(stderr, "nixl_conformance: %s\n%s", mistake.c_str(), kUsage);
    std::exit(2);
}

std::pair<std::string, std::string> keyValue(const std::string& option, const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
        usage(option + "=" + text + ": must be KEY=VALUE");
    }
    return {text.substr(0, equals), text.substr(equals + 1)};
}

uint64_t bytes(const std::string& option, const std::string& text) {
    char* end = nullptr;
    const uint64_t value = std::strtoull(text.c_str(), &end, 10);
    if (value == 0 || *end != '\0') {
        usage(option + "=" + text + ": must be a number above 0");
    }
    return value;
}

void setRemote(Subject& subject, const std::string& text) {
    using nixl::testkit::FileMode;
    subject.kind = Subject::STORAGE;
    if (text == "memory") {
        subject.kind = Subject::NETWORK;
    } else if (text == "file" || text == "path") {
        const FileMode mode = text == "file" ? FileMode::DESCRIPTOR : FileMode::PATH;
        subject.remote = [mode](uint64_t size) {
            return nixl::testkit::makeFileBuffer(size, mode);
        };
    } else if (text.starts_with("folder:")) {
        subject.remote = nixl::testkit::folderBuffers(text.substr(7), MemType::OBJECT);
    } else if (text.starts_with("self:")) {
        const auto type = nixl::parseMemType(text.substr(5));
        if (!type.ok()) {
            usage(type.status().message());
        }
        subject.remote = nixl::testkit::selfBuffers(subject, type.value());
    } else {
        usage("--remote=" + text + " is none of memory, file, path, folder:DIR, self:TYPE");
    }
}

Subject readOptions(int count, char** words) {
    Subject subject("", "", Subject::NETWORK);
    std::string remote = "memory";
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const size_t equals = word.find('=');
        const std::string option = word.substr(0, equals);
        const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
        if (!word.starts_with("--")) {
            subject.plugin = word;
        } else if (option == "--param") {
            subject.parameters.insert(keyValue(option, value));
        } else if (option == "--slow-param") {
            subject.slowParameters.insert(keyValue(option, value));
        } else if (option == "--deviation") {
            const auto [check, reason] = keyValue(option, value);
            subject.deviations.push_back({check, reason});
        } else if (option == "--largest") {
            subject.largest = bytes(option, value);
        } else if (option == "--granularity") {
            subject.granularity = bytes(option, value);
        } else if (option == "--remote") {
            remote = value;
        } else {
            usage("unknown option " + word);
        }
    }
    if (subject.plugin.empty()) {
        usage("which plugin?");
    }
    subject.name = subject.plugin;
    setRemote(subject, remote);
    return subject;
}

}  // namespace

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    for (int i = 1; i < argc; ++i) {
        if (std::string(argv[i]) == "--help") {
            std::fputs(kUsage, stdout);
            return 0;
        }
    }
    const Subject subject = readOptions(argc, argv);
    if (const auto found = nixl::backend::PluginRegistry::instance().find(subject.plugin);
        !found.ok()) {
        std::fprintf(stderr, "nixl_conformance: %s\n", found.status().message().c_str());
        return 2;
    }
    nixl::testkit::joinConformance(subject);
    return RUN_ALL_TESTS();
}
