// See conformance.h: makes GoogleTest tests of the checks.
#include "testing/conformance.h"

#include <cstdio>

#include <gtest/gtest.h>

#include "backend/plugins.h"
#include "testing/harness.h"

namespace nixl::testkit {
namespace {

class ConformanceTest : public ::testing::Test {
  public:
    ConformanceTest(std::shared_ptr<const Subject> subject, const Check& check)
        : subject_(std::move(subject)), check_(check) {}

    void TestBody() override {
        if (const std::string reason = subject_->unavailable(); !reason.empty()) {
            GTEST_SKIP() << subject_->name << " cannot run here: " << reason;
        }
        for (const Deviation& deviation : subject_->deviations) {
            if (deviation.check == check_.name) {
                std::printf("DEVIATION %s.%s: %s\n", subject_->name.c_str(), check_.name,
                            deviation.reason.c_str());
                GTEST_SKIP() << "declared deviation: " << deviation.reason;
            }
        }
        Bench bench(*subject_);
        if (bench.side() == nullptr) {
            return;  // the test has failed
        }
        check_.run(bench);
    }

  private:
    const std::shared_ptr<const Subject> subject_;
    const Check check_;
};

// A deviation for a check that does not exist would be silent for ever.
void checkDeviations(const Subject& subject, const std::vector<Check>& checks) {
    for (const Deviation& deviation : subject.deviations) {
        bool known = false;
        for (const Check& check : checks) {
            known = known || deviation.check == check.name;
        }
        if (!known || deviation.reason.empty()) {
            std::fprintf(stderr,
                         "conformance of %s: deviation \"%s\" names no check or no reason\n",
                         subject.name.c_str(), deviation.check.c_str());
            std::abort();
        }
    }
}

}  // namespace

bool joinConformance(Subject subject) {
    const auto shared = std::make_shared<const Subject>(std::move(subject));
    std::vector<Check> checks = transferChecks();
    for (const auto& more : {endingChecks(), lifetimeChecks(), agentChecks()}) {
        checks.insert(checks.end(), more.begin(), more.end());
    }
    checkDeviations(*shared, checks);
    const std::string suite = "Conformance_" + shared->name;
    const Check::For others =
        shared->kind == Subject::STORAGE ? Check::For::NETWORK : Check::For::STORAGE;
    for (const Check& check : checks) {
        if (check.whom == others || (shared->limits.empty() && check.forLimits)) {
            continue;
        }
        ::testing::RegisterTest(
            suite.c_str(), check.name, nullptr, nullptr, __FILE__, __LINE__,
            [shared, check]() -> ConformanceTest* { return new ConformanceTest(shared, check); });
    }
    return true;
}

}  // namespace nixl::testkit
