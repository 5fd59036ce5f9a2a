// The wrappers: plans as text, what switches them on, what a trace shows.
#include "backend/wrappers.h"

#include <array>
#include <cstdlib>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/completion.h"
#include "testing/memory_backend.h"
#include "testing/services.h"

namespace nixl::backend {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;
using testkit::TestCompletion;
using testkit::TestServices;

TEST(FaultPlan, TextIsReadBack) {
    const auto plan =
        FaultPlan::parse("seed=9,refuse=1,fail=2,short=3,delay=4,duplicate=5,delay_time=20ms");
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(plan.value().seed, 9U);
    EXPECT_EQ(plan.value().refuse, 1U);
    EXPECT_EQ(plan.value().fail, 2U);
    EXPECT_EQ(plan.value().shorten, 3U);
    EXPECT_EQ(plan.value().delay, 4U);
    EXPECT_EQ(plan.value().duplicate, 5U);
    EXPECT_EQ(plan.value().delayTime, std::chrono::milliseconds(20));
    const std::string text = plan.value().text();
    EXPECT_EQ(FaultPlan::parse(text).value().text(), text);
    EXPECT_FALSE(FaultPlan::parse("").value().any());
    EXPECT_FALSE(FaultPlan::parse("seed=4").value().any());
}

TEST(FaultPlan, MistakesAreNamed) {
    EXPECT_THAT(FaultPlan::parse("fail").status().message(),
                HasSubstr("\"fail\" is not key=value"));
    EXPECT_THAT(FaultPlan::parse("fail=x").status().message(), HasSubstr("fail=\"x\": must be"));
    EXPECT_THAT(FaultPlan::parse("fial=3").status().message(), HasSubstr("did you mean fail?"));
}

// A transfer of one segment between two arrays.
struct Copy {
    explicit Copy(Backend& backend) {
        plan.localRegions = {&region, 1};
        plan.remoteRegions = {&region, 1};
        run.local = reinterpret_cast<uint64_t>(from.data());
        run.remote = reinterpret_cast<uint64_t>(to.data());
        run.size = from.size();
        plan.op = OpType::WRITE;
        plan.runs = {&run, 1};
        plan.bytes = run.size;
        plan.segments = 1;
        plan.peer.name = "me";
        auto made = backend.prepareTransfer(plan);
        prepared = made.status();
        if (made.ok()) {
            transfer = std::move(made).value();
        }
    }
    std::array<char, 64> from{};
    std::array<char, 64> to{};
    PlanRegion region;
    PlanRun run;
    TransferPlan plan;
    Status prepared;
    std::unique_ptr<BackendTransfer> transfer;
};

class CreateTest : public testing::Test {
  public:
    ~CreateTest() override {
        unsetenv("NIXL_FAULT");
        unsetenv("NIXL_TRACE");
    }

  protected:
    std::unique_ptr<Backend> create(std::map<std::string, std::string> given = {}) {
        auto created = createBackend(testkit::memoryBackendTable(), std::move(given), services_);
        EXPECT_TRUE(created.ok()) << created.status().message();
        return created.ok() ? std::move(created).value().backend : nullptr;
    }
    // How one post ends.
    Status post(Backend& backend) {
        Copy copy(backend);
        if (!copy.transfer) {
            return copy.prepared;
        }
        const auto end = std::make_shared<TestCompletion>();
        const Status status = copy.transfer->post(end, {}, false);
        EXPECT_TRUE(!status.ok() || end->waitFor(std::chrono::seconds(10)));
        return status.ok() ? end->status() : status;
    }
    TestServices services_;
};

TEST_F(CreateTest, WithoutAskingNothingIsWrapped) {
    const auto backend = create();
    EXPECT_TRUE(post(*backend).ok());
    EXPECT_TRUE(services_.lines(LogLevel::INFO).empty());
}

TEST_F(CreateTest, ParameterAndEnvironmentSwitchFaultsOn) {
    EXPECT_THAT(post(*create({{"nixl_fault", "seed=5,fail=1"}})).message(),
                HasSubstr("injected fault (seed 5): failed post number 1"));
    setenv("NIXL_FAULT", "seed=6,fail=1", 1);
    EXPECT_THAT(post(*create()).message(), HasSubstr("injected fault (seed 6)"));
    setenv("NIXL_FAULT", "POSIX:fail=1;memory:seed=8,refuse=1", 1);
    EXPECT_THAT(post(*create()).message(), HasSubstr("injected fault (seed 8): refused call"));
    setenv("NIXL_FAULT", "POSIX:fail=1", 1);
    EXPECT_TRUE(post(*create()).ok());
    EXPECT_TRUE(services_.lines(LogLevel::WARN).empty()) << "nixl_fault is no unknown parameter";
}

TEST_F(CreateTest, MistakesInAFaultPlanAreErrors) {
    setenv("NIXL_FAULT", "always", 1);
    const auto created = createBackend(testkit::memoryBackendTable(), {}, services_);
    ASSERT_FALSE(created.ok());
    EXPECT_THAT(created.status().message(), HasSubstr("MEMORY: NIXL_FAULT: fault plan \"always\""));
}

TEST_F(CreateTest, TraceShowsEachCallAndEnd) {
    setenv("NIXL_TRACE", "posix,memory", 1);
    auto backend = create();
    EXPECT_TRUE(post(*backend).ok());
    backend.reset();
    std::string all;
    for (const std::string& line : services_.lines(LogLevel::INFO)) {
        all += line + "\n";
    }
    EXPECT_THAT(all, AllOf(ContainsRegex("trace 1 prepare WRITE 1 segments 64 bytes to "
                                         "\"me\": ok in [0-9]+ us"),
                           ContainsRegex("trace 1 end DONE after [0-9]+ us"),
                           ContainsRegex("trace 1 post: ok in [0-9]+ us, ended inline"),
                           HasSubstr("trace 1 released"), HasSubstr("trace destroyed")));
    setenv("NIXL_TRACE", "0", 1);
    EXPECT_TRUE(post(*create()).ok());
}

TEST_F(CreateTest, TraceShowsFailures) {
    const auto backend = create({{"nixl_trace", "1"}, {"nixl_fault", "seed=2,fail=1"}});
    EXPECT_FALSE(post(*backend).ok());
    EXPECT_THAT(services_.lines(LogLevel::INFO),
                testing::Contains(ContainsRegex(
                    "end FAILED after .* NIXL_ERR_BACKEND injected fault .*; bytes 0.64: 0 moved, "
                    "errno 5")));
}

TEST_F(CreateTest, PluginsThatBreakTheContractAreNamed) {
    PluginTable table = testkit::memoryBackendTable();
    table.name = "BROKEN";
    table.createBackend = [](const Parameters&,
                             PluginServices&) -> Result<std::unique_ptr<Backend>> {
        throw std::runtime_error("oops");
    };
    EXPECT_EQ(createBackend(table, {}, services_).status().message(),
              "backend BROKEN: it threw \"oops\"");
    table.createBackend = [](const Parameters&,
                             PluginServices&) -> Result<std::unique_ptr<Backend>> {
        return std::unique_ptr<Backend>();
    };
    EXPECT_THAT(createBackend(table, {}, services_).status().message(),
                HasSubstr("BROKEN: createBackend returned no backend"));
    table.createBackend = testkit::memoryBackendTable().createBackend;
    EXPECT_THAT(createBackend(table, {}, services_).status().message(),
                HasSubstr("BROKEN: its backend calls itself \"MEMORY\""));
}

}  // namespace
}  // namespace nixl::backend
