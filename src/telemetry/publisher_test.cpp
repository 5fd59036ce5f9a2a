// The publisher with exporters that fail, hang, or are of another version.
#include "telemetry/publisher.h"

#include <atomic>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::telemetry {
namespace {

namespace fs = std::filesystem;

// What the exporter of this test does, and what was asked of it.
struct Script {
    std::atomic<bool> fails{false};
    std::atomic<bool> hangs{false};
    std::atomic<int> published{0};
    std::atomic<int> destroyed{0};
};
Script& script() {
    static Script one;
    return one;
}

void* create(const nixl_exporter_setup* setup, char* error, size_t error_size) {
    const char* const word = setup->parameter(setup->context, "refuse");
    if (word != nullptr) {
        std::snprintf(error, error_size, "%s", word);
        return nullptr;
    }
    return &script();
}
int publish(void* self, const nixl_metrics* metrics, char* error, size_t error_size) {
    auto& now = *static_cast<Script*>(self);
    EXPECT_GT(metrics->metric_count, 5U);
    now.published.fetch_add(1);
    now.published.notify_all();
    now.hangs.wait(true);
    if (now.fails.load()) {
        std::snprintf(error, error_size, "no room");
        return 1;
    }
    return 0;
}
void destroy(void* self) {
    static_cast<Script*>(self)->destroyed.fetch_add(1);
    static_cast<Script*>(self)->destroyed.notify_all();
}
constexpr nixl_exporter kTable{NIXL_EXPORTER_ABI, &create, &publish, nullptr, &destroy};

class PublisherTest : public testing::Test {
  public:
    PublisherTest() {
        char name[] = "/tmp/nixl-publisher-XXXXXX";
        directory_ = mkdtemp(name);
        script().fails = false;
        script().hangs = false;
        script().published = 0;
        script().destroyed = 0;
    }
    ~PublisherTest() override { fs::remove_all(directory_); }

  protected:
    Exporter::Setup setup() const { return {"a", "0123456789abcdef", directory_, {}}; }
    std::unique_ptr<Publisher> start() {
        Publisher::Plan plan;
        plan.agent = "a";
        plan.id = "0123456789abcdef";
        plan.directory = directory_;
        plan.interval = std::chrono::milliseconds(10);
        plan.read = [] {
            AgentTelemetry telemetry;
            telemetry.agent = "a";
            telemetry.incarnation = "0123456789abcdef";
            return std::optional(telemetry);
        };
        std::vector<std::unique_ptr<Exporter>> exporters;
        exporters.push_back(std::move(Exporter::create("TEST", kTable, setup())).value());
        return std::move(Publisher::start(std::move(plan), std::move(exporters))).value();
    }
    static void awaitMore(std::atomic<int>& count, int than) {
        for (int now = count.load(); now <= than; now = count.load()) {
            count.wait(now);
        }
    }
    size_t files() const {
        return static_cast<size_t>(
            std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
    }

    std::string directory_;
};

TEST_F(PublisherTest, PublishesAtOnceAgainAndAtTheEnd) {
    const auto publisher = start();
    EXPECT_GE(script().published.load(), 1);
    EXPECT_EQ(files(), 1U);
    awaitMore(script().published, 5);
    publisher->stop(std::chrono::minutes(1));
    EXPECT_EQ(script().destroyed.load(), 1);
    EXPECT_EQ(files(), 0U);
    EXPECT_EQ(publisher->failures(), 0U);
}

TEST_F(PublisherTest, FailuresAreCountedAndItGoesOn) {
    script().fails = true;
    const auto publisher = start();
    awaitMore(script().published, 5);
    EXPECT_GE(publisher->failures(), 4U);
    fs::remove_all(directory_);
    const int before = script().published.load();
    awaitMore(script().published, before + 2);  // the file fails too, and nothing stops
    publisher->stop(std::chrono::minutes(1));
    EXPECT_EQ(script().destroyed.load(), 1);
}

TEST_F(PublisherTest, AnExporterThatHangsIsLeftBehind) {
    script().hangs = true;
    auto publisher = start();
    publisher->stop(std::chrono::milliseconds(20));
    publisher.reset();
    EXPECT_EQ(script().destroyed.load(), 0);
    script().hangs = false;
    script().hangs.notify_all();
    awaitMore(script().destroyed, 0);  // its thread ends by itself
}

TEST_F(PublisherTest, WhatCannotBeMadeSaysWhy) {
    nixl_exporter old = kTable;
    old.abi = NIXL_EXPORTER_ABI + 1;
    EXPECT_THAT(Exporter::create("OLD", old, setup()).status().message(),
                testing::HasSubstr("OLD: built for exporter ABI 2, this library has 1"));
    nixl_exporter half = kTable;
    half.publish = nullptr;
    EXPECT_FALSE(Exporter::create("HALF", half, setup()).ok());
    Exporter::Setup refused = setup();
    refused.parameters["refuse"] = "the port is taken";
    EXPECT_EQ(Exporter::create("TEST", kTable, refused).status().message(),
              "telemetry exporter TEST: the port is taken");
}

}  // namespace
}  // namespace nixl::telemetry
