// The files through which processes share one endpoint.
#include "shelf.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::prometheus_exporter {
namespace {

namespace fs = std::filesystem;

class ShelfTest : public testing::Test {
  public:
    ShelfTest() {
        char name[] = "/tmp/nixl-shelf-XXXXXX";
        directory_ = mkdtemp(name);
    }
    ~ShelfTest() override { fs::remove_all(directory_); }

  protected:
    static nixl_metrics metrics() {
        static constexpr nixl_label kLabels[] = {{"peer", "a \"b\"\tc\nd\\e"}, {"agent", ""}};
        static constexpr double kBounds[] = {0.5, 1};
        static constexpr uint64_t kBuckets[] = {1, 2, 3};
        static constexpr nixl_sample kTime[] = {{kLabels, 2, 4.5, kBuckets}};
        static constexpr nixl_sample kCount[] = {{kLabels, 2, 1e18, nullptr}};
        static constexpr nixl_metric kAll[] = {
            {"x_seconds", "help \\ of x", NIXL_METRIC_HISTOGRAM, kBounds, 2, kTime, 1},
            {"y_total", "of y", NIXL_METRIC_COUNTER, nullptr, 0, kCount, 1}};
        return {1, "{}", kAll, 2};
    }
    size_t files() const {
        return static_cast<size_t>(
            std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
    }
    std::string directory_;
};

TEST_F(ShelfTest, WhatIsLeftIsReadAsItWas) {
    ASSERT_EQ(leave(directory_, fileOf("one"), metrics()), "");
    ASSERT_EQ(leave(directory_, fileOf("two"), metrics()), "");
    const auto all = collect(directory_);
    ASSERT_EQ(all.size(), 2U);
    EXPECT_EQ(all[0].name, "x_seconds");
    EXPECT_EQ(all[0].help, "help \\ of x");
    ASSERT_EQ(all[0].metric.size(), 2U);
    EXPECT_EQ(all[0].metric[0].label[0].value, "a \"b\"\tc\nd\\e");
    EXPECT_EQ(all[0].metric[0].histogram.sample_count, 6U);
    EXPECT_EQ(all[0].metric[0].histogram.bucket.at(1).cumulative_count, 3U);
    EXPECT_EQ(all[1].metric[1].counter.value, 1e18);
    const std::string text = prometheus::TextSerializer().Serialize(all);
    EXPECT_NE(text.find(R"(y_total{peer="a \"b\")"), std::string::npos) << text;
}

TEST_F(ShelfTest, FilesOfDeadProcessesGo) {
    const pid_t child = fork();
    if (child == 0) {
        _exit(leave(directory_, fileOf("dead"), metrics()).empty() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    ASSERT_EQ(leave(directory_, fileOf("alive"), metrics()), "");
    EXPECT_EQ(files(), 2U);
    EXPECT_EQ(collect(directory_).at(0).metric.size(), 1U);
    EXPECT_EQ(files(), 1U);
}

TEST_F(ShelfTest, DamageEndsAFileNotTheOthers) {
    ASSERT_EQ(leave(directory_, fileOf("good"), metrics()), "");
    const std::string text = toText(metrics());
    for (size_t length = 0; length < text.size(); ++length) {
        std::vector<prometheus::MetricFamily> into;
        fromText(text.substr(0, length), into);
        EXPECT_LE(into.size(), 2U);
    }
    std::ofstream(directory_ + "/" + fileOf("bad"))
        << text.substr(0, text.find('\n') + 1) << "S\tx\nF\t\n\xff\n";
    const auto all = collect(directory_);
    ASSERT_EQ(all.size(), 2U);
    EXPECT_EQ(all[0].metric.size(), 1U);
}

TEST_F(ShelfTest, ALinkIsNotFollowed) {
    const std::string secret = directory_ + "/secret";
    std::ofstream(secret) << toText(metrics());
    fs::create_symlink(secret, directory_ + "/" + fileOf("link"));
    EXPECT_TRUE(collect(directory_).empty());
}

}  // namespace
}  // namespace nixl::prometheus_exporter
