// The exporter FILE, through its table as the library calls it.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "nixl/plugin.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

namespace fs = std::filesystem;

class FileExporterTest : public testing::Test {
  public:
    FileExporterTest() {
        char name[] = "/tmp/nixl-file-exporter-XXXXXX";
        directory_ = mkdtemp(name);
    }
    ~FileExporterTest() override { fs::remove_all(directory_); }

  protected:
    static const char* size(void* context, const char* name) {
        return std::string(name) == "max_size" ? static_cast<const char*>(context) : nullptr;
    }
    void* create(const char* most) {
        const nixl_exporter_setup setup{
            "an agent/with \"odd\" letters", "0123456789abcdef", directory_.c_str(), &size, nullptr,
            const_cast<char*>(most)};
        return api_.create(&setup, error_, sizeof error_);
    }
    int publish(void* exporter, const std::string& json) {
        const nixl_metrics metrics{1.0, json.c_str(), nullptr, 0};
        return api_.publish(exporter, &metrics, error_, sizeof error_);
    }
    std::vector<std::string> lines(const std::string& ending) {
        std::vector<std::string> found;
        for (const auto& entry : fs::directory_iterator(directory_)) {
            const std::string name = entry.path().filename();
            if (name.ends_with(ending) && (ending != ".jsonl" || !name.ends_with(".1.jsonl"))) {
                std::ifstream file(entry.path());
                for (std::string line; std::getline(file, line);) {
                    found.push_back(line);
                }
            }
        }
        return found;
    }

    const nixl_exporter& api_ = *nixlPluginTable()->exporter;
    std::string directory_;
    char error_[256] = "";
};

TEST_F(FileExporterTest, AppendsALineEachTime) {
    void* const exporter = create("1M");
    ASSERT_NE(exporter, nullptr) << error_;
    EXPECT_EQ(publish(exporter, "{\"a\":1}"), 0);
    EXPECT_EQ(publish(exporter, "{\"a\":2}"), 0);
    api_.destroy(exporter);
    EXPECT_EQ(lines(".jsonl"), (std::vector<std::string>{"{\"a\":1}", "{\"a\":2}"}));
}

TEST_F(FileExporterTest, AFullFileIsPutAside) {
    void* const exporter = create("20");
    ASSERT_NE(exporter, nullptr) << error_;
    for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(publish(exporter, "{\"a\":" + std::to_string(i) + "}"), 0);
    }
    api_.destroy(exporter);
    EXPECT_EQ(lines(".1.jsonl"), (std::vector<std::string>{"{\"a\":2}", "{\"a\":3}"}));
    EXPECT_EQ(lines(".jsonl"), (std::vector<std::string>{"{\"a\":4}"}));
}

TEST_F(FileExporterTest, WhatCannotBeWrittenIsToldWithItsPath) {
    void* const exporter = create("1M");
    ASSERT_NE(exporter, nullptr) << error_;
    fs::remove_all(directory_);
    EXPECT_NE(publish(exporter, "{}"), 0);
    EXPECT_NE(std::string(error_).find(directory_), std::string::npos) << error_;
    EXPECT_NE(std::string(error_).find("No such file"), std::string::npos) << error_;
    api_.destroy(exporter);
}

}  // namespace
}  // namespace nixl
