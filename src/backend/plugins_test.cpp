// The loader: search path, messages of failures, checks of tables.
#include "backend/plugins.h"

#include <cstdlib>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/names.h"
#include "backend/plugin_files.h"

namespace nixl::backend {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kFolder = NIXL_TEST_PLUGIN_DIR;

// NIXL_PLUGIN_DIR as given, restored at the end.
class PluginDir {
  public:
    explicit PluginDir(const std::string& value) {
        if (const char* old = std::getenv("NIXL_PLUGIN_DIR"); old != nullptr) {
            before_ = old;
        }
        setenv("NIXL_PLUGIN_DIR", value.c_str(), 1);
    }
    ~PluginDir() { setenv("NIXL_PLUGIN_DIR", before_.c_str(), 1); }
    PluginDir(const PluginDir&) = delete;
    PluginDir& operator=(const PluginDir&) = delete;

  private:
    std::string before_;
};

std::string good() {
    return std::string(kFolder) + "/good";
}
std::string bad() {
    return std::string(kFolder) + "/bad";
}

Status failure(std::string_view name, PluginKind kind = PluginKind::BACKEND) {
    const auto table = PluginRegistry::instance().find(name, kind);
    return table.ok() ? Status() : table.status();
}

TEST(Plugins, FindsByNameWithoutCaseAndByAlias) {
    const PluginDir folder(good());
    PluginRegistry& registry = PluginRegistry::instance();
    EXPECT_THAT(registry.names(), Contains("GOOD"));
    const auto table = registry.find("good");
    ASSERT_TRUE(table.ok()) << table.status().message();
    EXPECT_STREQ(table.value()->name, "GOOD");
    EXPECT_EQ(registry.find("GoOd").value(), table.value());
    EXPECT_EQ(registry.find("4ever").value(), table.value());
    EXPECT_EQ(registry.pathOf(table.value()), good() + "/libplugin_good.so");
}

TEST(Plugins, ChangedEnvironmentCountsAndFailuresAreRetried) {
    {
        const PluginDir folder("/nonexistent/plugins");
        EXPECT_EQ(failure("abi").code(), ErrorCode::NOT_FOUND);
        EXPECT_THAT(PluginRegistry::instance().names(), Not(Contains("ABI")));
    }
    const PluginDir folder("/nonexistent/plugins::" + bad());
    EXPECT_EQ(failure("abi").code(), ErrorCode::MISMATCH);
    EXPECT_THAT(PluginRegistry::instance().names(), Contains("ABI"));
    // The first folder whose file loads wins; a bad one before it does not stand in the way.
    const PluginDir both(bad() + ":" + good());
    const auto table = PluginRegistry::instance().find("GOOD");
    ASSERT_TRUE(table.ok()) << table.status().message();
    EXPECT_EQ(table.value()->abi, kPluginAbi);
}

TEST(Plugins, UnknownNameTellsFoldersGuessAndWhatThereIs) {
    const PluginDir folder("/nonexistent/plugins:" + good());
    const Status status = failure("GODO");
    EXPECT_EQ(status.code(), ErrorCode::NOT_FOUND);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("backend plugin \"GODO\" not found: no libplugin_godo.so in "),
                      HasSubstr("/nonexistent/plugins (NIXL_PLUGIN_DIR, no readable folder)"),
                      HasSubstr(good() + " (NIXL_PLUGIN_DIR)"),
                      HasSubstr("/nixl/plugins (beside the library"),
                      HasSubstr("did you mean GOOD?"), HasSubstr("Available: GOOD")));
    EXPECT_THAT(failure("qwertyuiop").message(), Not(HasSubstr("did you mean")));
}

TEST(Plugins, MissingLibraryTellsWhatToInstall) {
    const PluginDir folder(bad());
    const Status status = failure("missing");
    EXPECT_EQ(status.code(), ErrorCode::NOT_FOUND);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("\"missing\" cannot be loaded: " + bad() + "/libplugin_missing.so"),
                      HasSubstr("libnixl-test-missing.so.7: cannot open shared object file"),
                      HasSubstr("install what provides libnixl-test-missing.so.7"),
                      HasSubstr("apt install libnixl-test-missing7")));
}

TEST(Plugins, RefusesOtherAbiNullAndFilesThatAreNoPlugins) {
    const PluginDir folder(bad());
    EXPECT_THAT(failure("abi").message(),
                HasSubstr("built for plugin ABI " + std::to_string(kPluginAbi + 1000) +
                          ", this library has"));
    EXPECT_THAT(failure("null").message(), HasSubstr("nixlPluginTable() returned null"));
    EXPECT_THAT(failure("nosymbol").message(), HasSubstr("exports no nixlPluginTable"));
    EXPECT_THAT(PluginRegistry::instance().names(), Not(Contains("NOSYMBOL")));
}

TEST(Plugins, DamagedAndUnreadableFiles) {
    char pattern[] = "/tmp/nixl_plugins_XXXXXX";
    const std::string path = mkdtemp(pattern);
    std::ofstream(path + "/libplugin_text.so") << "nixlPluginTable" << '\0' << " in a text file";
    // NOLINTNEXTLINE(bugprone-unused-raii)
    std::ofstream(path + "/libplugin_empty.so");
    ASSERT_EQ(symlink("nowhere", (path + "/libplugin_dangling.so").c_str()), 0);
    ASSERT_EQ(mkdir((path + "/libplugin_folder.so").c_str(), 0700), 0);
    const PluginDir folder(path);
    EXPECT_THAT(failure("text").message(), HasSubstr("the file is damaged or for another kind"));
    for (const char* name : {"empty", "dangling", "folder"}) {
        const Status status = failure(name);
        EXPECT_FALSE(status.ok());
        EXPECT_THAT(status.message(), HasSubstr(path + "/libplugin_" + name + ".so"));
    }
    rmdir((path + "/libplugin_folder.so").c_str());
    for (const char* name : {"text", "empty", "dangling"}) {
        unlink((path + "/libplugin_" + name + ".so").c_str());
    }
    rmdir(path.c_str());
}

TEST(Plugins, WithNoDescriptorsLeftNothingIsSaidNotToExist) {
    const PluginDir folder(bad());
    EXPECT_EQ(failure("nobody").code(), ErrorCode::NOT_FOUND);
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    const rlimit none{0, before.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    const Status known = failure("abi");
    const Status unknown = failure("nobody");
    setrlimit(RLIMIT_NOFILE, &before);
    for (const Status& status : {known, unknown}) {
        EXPECT_EQ(status.code(), ErrorCode::BACKEND);
        EXPECT_THAT(status.message(), HasSubstr(bad() + ": cannot be read: Too many open files"));
    }
    EXPECT_EQ(failure("abi").code(), ErrorCode::MISMATCH);
}

TEST(Plugins, OddNamesAreRefused) {
    for (const std::string& name :
         {std::string(), std::string("../x"), std::string("a/b"), std::string("a\0b", 3),
          std::string(65, 'x'), std::string("é")}) {
        EXPECT_EQ(failure(name).code(), ErrorCode::INVALID_PARAM) << name;
    }
}

TEST(Plugins, KindsAreApart) {
    const PluginDir folder(good());
    const Status status = failure("GOOD", PluginKind::TELEMETRY_EXPORTER);
    EXPECT_THAT(status.message(), HasSubstr("no libtelemetry_exporter_good.so in"));
    EXPECT_THAT(PluginRegistry::instance().names(PluginKind::TELEMETRY_EXPORTER),
                Not(Contains("GOOD")));
}

TEST(Plugins, ThreadsLoadOnce) {
    const PluginDir folder(good());
    std::vector<const PluginTable*> found(8);
    std::vector<std::thread> threads;
    for (auto& place : found) {
        threads.emplace_back([&place] {
            const auto table = PluginRegistry::instance().find("GOOD");
            place = table.ok() ? table.value() : nullptr;
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    ASSERT_NE(found[0], nullptr);
    EXPECT_THAT(found, testing::Each(found[0]));
}

Result<std::unique_ptr<Backend>> createNothing(const Parameters&, PluginServices&) {
    return Status::notSupported("nothing");
}

struct TableParts {
    MemType types[1] = {MemType::DRAM};
    ParameterSpec specs[2] = {{"depth", ParameterType::INTEGER, "8", "", 1, 64},
                              {"mode", ParameterType::CHOICE, "a", "", 0, 0, "a|b"}};
    PluginTable table{};

    TableParts() {
        table.abi = kPluginAbi;
        table.name = "PARTS";
        table.memoryTypes = types;
        table.memoryTypeCount = 1;
        table.parameters = specs;
        table.parameterCount = 2;
        table.createBackend = createNothing;
    }
    std::string check() const {
        return checkPluginTable(&table, PluginKind::BACKEND, "/p.so").message();
    }
};

TEST(PluginTableCheck, NamesEachDefect) {
    EXPECT_EQ(TableParts().check(), "");
    TableParts parts;
    parts.table.name = "";
    EXPECT_THAT(parts.check(), HasSubstr("/p.so: its table has no name"));
    parts = {};
    parts.table.kind = PluginKind::TELEMETRY_EXPORTER;
    EXPECT_THAT(parts.check(), HasSubstr("is no backend"));
    parts = {};
    parts.table.createBackend = nullptr;
    EXPECT_THAT(parts.check(), HasSubstr("has no createBackend"));
    parts = {};
    parts.table.memoryTypeCount = 0;
    EXPECT_THAT(parts.check(), HasSubstr("declares no memory type"));
}

TEST(PluginTableCheck, NamesDefectsOfParameters) {
    TableParts parts;
    parts.table.parameters = parts.specs;
    parts.specs[0].defaultValue = "65";
    EXPECT_THAT(parts.check(),
                HasSubstr("\"depth\": its default \"65\" must be an integer from 1"));
    parts.specs[0] = {"mode", ParameterType::STRING, "", ""};
    EXPECT_THAT(parts.check(), HasSubstr("\"mode\" stands twice"));
    parts.specs[0] = {"kind", ParameterType::CHOICE, "", ""};
    EXPECT_THAT(parts.check(), HasSubstr("a CHOICE without choices"));
    parts.table.parameters = nullptr;
    EXPECT_THAT(parts.check(), HasSubstr("has parameterCount but no parameters"));
}

TEST(PluginRegistryAdd, MakesATableOfTheProgramKnownOnce) {
    static const TableParts parts;
    static const TableParts other;
    PluginRegistry& registry = PluginRegistry::instance();
    ASSERT_TRUE(registry.add(parts.table).ok());
    EXPECT_TRUE(registry.add(parts.table).ok());
    EXPECT_EQ(registry.add(other.table).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(registry.find("parts").value(), &parts.table);
    EXPECT_EQ(registry.pathOf(&parts.table), "");
    EXPECT_THAT(registry.names(), Contains("PARTS"));
}

TEST(LoadHint, KnowsTheLoadersMessages) {
    EXPECT_THAT(loadHint("libcurl.so.4: cannot open shared object file: No such file"),
                HasSubstr("apt install libcurl4,"));
    EXPECT_THAT(loadHint("libx2.so.3: cannot open shared object file"), HasSubstr("libx2-3,"));
    EXPECT_EQ(loadHint("/a/b.so: cannot open shared object file"), "");
    EXPECT_THAT(loadHint("undefined symbol: _ZN4nixl1fEv"), HasSubstr("rebuild it"));
    EXPECT_THAT(loadHint("version `GLIBC_2.99' not found"), HasSubstr("newer system"));
    EXPECT_EQ(loadHint("something else"), "");
}

TEST(Names, NearestFindsTyposOnly) {
    const std::vector<std::string> known = {"POSIX", "OBJ", "GDS_MT"};
    EXPECT_EQ(nearestName("posx", known), "POSIX");
    EXPECT_EQ(nearestName("PSOIX", known), "POSIX");
    EXPECT_EQ(nearestName("gds-mt", known), "GDS_MT");
    EXPECT_EQ(nearestName("obj", known), "OBJ");
    EXPECT_EQ(nearestName("TCP", known), "");
    EXPECT_EQ(nearestName("", known), "");
}

}  // namespace
}  // namespace nixl::backend
