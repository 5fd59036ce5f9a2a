// nixl_sim [--count N | --seeds N] [--seed N] [--bug NAME]: runs schedules, or replays one.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "testing/sim/sim.h"

namespace {

using nixl::sim::Bug;

bool parseBug(const char* name, Bug& bug) {
    static constexpr struct {
        const char* name;
        Bug bug;
    } kBugs[] = {{"none", Bug::NONE},
                 {"early-ack", Bug::EARLY_ACK},
                 {"wrong-resume", Bug::WRONG_RESUME},
                 {"no-fence", Bug::NO_FENCE},
                 {"mark-order", Bug::MARK_ORDER},
                 {"early-notify", Bug::EARLY_NOTIFY},
                 {"help-order", Bug::HELP_ORDER},
                 {"early-unmap", Bug::EARLY_UNMAP},
                 {"lost-open", Bug::LOST_OPEN},
                 {"early-release", Bug::EARLY_RELEASE}};
    for (const auto& known : kBugs) {
        if (std::strcmp(known.name, name) == 0) {
            bug = known.bug;
            return true;
        }
    }
    return false;
}

int usage() {
    std::fprintf(stderr,
                 "usage: nixl_sim [--seeds N] [--seed N] [--bug "
                 "none|early-ack|wrong-resume|no-fence|mark-order|early-notify|help-order|"
                 "early-unmap|lost-open|early-release]\n");
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t first = 1;
    uint64_t count = 20'000;
    Bug bug = Bug::NONE;
    for (int i = 1; i + 1 < argc + 1; ++i) {
        const std::string key = argv[i];
        if (i + 1 == argc) {
            return usage();
        }
        const char* const value = argv[++i];
        if (key == "--seed") {
            first = std::strtoull(value, nullptr, 10);
            count = 1;
        } else if (key == "--seeds" || key == "--count") {
            count = std::strtoull(value, nullptr, 10);
        } else if (key != "--bug" || !parseBug(value, bug)) {
            return usage();
        }
    }
    nixl::sim::Outcome total;
    for (uint64_t seed = first; seed < first + count; ++seed) {
        const nixl::sim::Outcome one = nixl::sim::runSchedule(seed, bug);
        total.steps += one.steps;
        total.notifications += one.notifications;
        total.transfers += one.transfers;
        if (!one.good) {
            std::printf("seed %llu: %s (after %llu steps)\n", static_cast<unsigned long long>(seed),
                        one.what.c_str(), static_cast<unsigned long long>(one.steps));
            return 1;
        }
    }
    std::printf("%llu schedules, %llu steps, %llu notifications, %llu transfers: all good\n",
                static_cast<unsigned long long>(count),
                static_cast<unsigned long long>(total.steps),
                static_cast<unsigned long long>(total.notifications),
                static_cast<unsigned long long>(total.transfers));
    return 0;
}
