// See metrics.h.
#include "telemetry/metrics.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <tuple>

#include <sys/resource.h>
#include <unistd.h>

namespace nixl::telemetry {
namespace {

using Family = Metrics::Family;
using Labels = Metrics::Labels;

constexpr Family kInfo{"nixl_agent_info", "An agent; always 1.", NIXL_METRIC_GAUGE};
constexpr Family kUptime{"nixl_agent_uptime_seconds", "Since the agent was created.",
                         NIXL_METRIC_GAUGE};
constexpr Family kPeers{"nixl_peers", "Agents whose metadata is known.", NIXL_METRIC_GAUGE};
constexpr Family kPrepared{"nixl_prepared_transfers", "Transfers that can be posted.",
                           NIXL_METRIC_GAUGE};
constexpr Family kRegions{"nixl_registered_regions", "Registered ranges.", NIXL_METRIC_GAUGE};
constexpr Family kRegistered{"nixl_registered_bytes", "Bytes of registered ranges.",
                             NIXL_METRIC_GAUGE};
constexpr Family kPosts{"nixl_transfers_posted_total", "Transfers that were started.",
                        NIXL_METRIC_COUNTER};
constexpr Family kTransfers{"nixl_transfers_total",
                            "Transfers that ended: state done, failed or canceled.",
                            NIXL_METRIC_COUNTER};
constexpr Family kBytes{"nixl_transfer_bytes_total", "Bytes of transfers that are done.",
                        NIXL_METRIC_COUNTER};
constexpr Family kErrors{"nixl_transfer_errors_total",
                         "Posts that were refused, failed or were canceled.", NIXL_METRIC_COUNTER};
constexpr Family kInProgress{"nixl_transfers_in_progress", "Transfers posted and not yet ended.",
                             NIXL_METRIC_GAUGE};
constexpr Family kTime{"nixl_transfer_seconds", "From the post of a transfer to its end.",
                       NIXL_METRIC_HISTOGRAM};
constexpr Family kSize{"nixl_transfer_size_bytes", "Bytes of a transfer.", NIXL_METRIC_HISTOGRAM};
constexpr Family kCounter{"nixl_agent_counter", "Counters of agent.stats() by name.",
                          NIXL_METRIC_GAUGE};
constexpr Family kResident{"nixl_process_resident_bytes", "Memory of the agent's process.",
                           NIXL_METRIC_GAUGE};
constexpr Family kProcessor{"nixl_process_cpu_seconds_total",
                            "Processor time of the agent's process.", NIXL_METRIC_COUNTER};

std::vector<double> timeBounds() {
    std::vector<double> bounds;
    for (size_t i = 0; i + 1 < kTimeBuckets; ++i) {
        bounds.push_back(std::chrono::duration<double>(timeBound(i)).count());
    }
    return bounds;
}

std::vector<double> sizeBounds() {
    std::vector<double> bounds;
    for (size_t i = 0; i + 1 < kSizeBuckets; ++i) {
        bounds.push_back(static_cast<double>(sizeBound(i)));
    }
    return bounds;
}

double asDouble(uint64_t number) {
    return static_cast<double>(number);
}

}  // namespace

Metrics::Metrics(const AgentTelemetry& telemetry) {
    own_ = {{"agent", texts_.emplace_back(telemetry.agent).c_str()},
            {"id", texts_.emplace_back(telemetry.incarnation.substr(0, 8)).c_str()}};
    add(kInfo, {{"pid", std::to_string(getpid())}}, 1);
    add(kUptime, {}, std::chrono::duration<double>(telemetry.age).count());
    add(kPeers, {}, asDouble(telemetry.peers));
    add(kPrepared, {}, asDouble(telemetry.prepared));
    for (const auto& [type, memory] : telemetry.registered) {
        const Labels labels = {{"memory", memTypeName(type)}};
        add(kRegions, labels, asDouble(memory.regions));
        add(kRegistered, labels, asDouble(memory.bytes));
    }
    for (const TransferCounts& counts : telemetry.transfers) {
        addTransfers(counts);
    }
    addHistograms(telemetry.transfers);
    for (const auto& [name, value] : telemetry.counters) {
        add(kCounter, {{"name", name}}, asDouble(value));
    }
    addProcess();
}

void Metrics::addTransfers(const TransferCounts& counts) {
    const Labels labels = {{"backend", counts.backend},
                           {"lane", counts.lane},
                           {"peer", counts.peer},
                           {"operation", opName(counts.op)}};
    const auto with = [&labels](const char* name, const char* value) {
        Labels more = labels;
        more.emplace_back(name, value);
        return more;
    };
    add(kPosts, labels, asDouble(counts.posts));
    add(kTransfers, with("state", "done"), asDouble(counts.done));
    add(kTransfers, with("state", "failed"), asDouble(counts.failed));
    add(kTransfers, with("state", "canceled"), asDouble(counts.canceled));
    add(kBytes, labels, asDouble(counts.bytes));
    add(kInProgress, labels, asDouble(counts.inProgress()));
    for (const auto& [code, number] : counts.errors) {
        add(kErrors, with("code", errorName(code)), asDouble(number));
    }
}

// Of all peers together: a histogram is many lines.
void Metrics::addHistograms(const std::vector<TransferCounts>& all) {
    std::map<std::tuple<std::string, std::string, OpType>, TransferCounts> sums;
    for (const TransferCounts& counts : all) {
        TransferCounts& sum = sums[{counts.backend, counts.lane, counts.op}];
        sum.time += counts.time;
        sum.bytes += counts.bytes;
        for (size_t i = 0; i < kTimeBuckets; ++i) {
            sum.times[i] += counts.times[i];
        }
        for (size_t i = 0; i < kSizeBuckets; ++i) {
            sum.sizes[i] += counts.sizes[i];
        }
    }
    const std::vector<double> times = timeBounds();
    const std::vector<double> sizes = sizeBounds();
    for (const auto& [key, sum] : sums) {
        const Labels labels = {{"backend", std::get<0>(key)},
                               {"lane", std::get<1>(key)},
                               {"operation", opName(std::get<2>(key))}};
        addHistogram(kTime, labels, times, sum.times,
                     std::chrono::duration<double>(sum.time).count());
        addHistogram(kSize, labels, sizes, sum.sizes, asDouble(sum.bytes));
    }
}

void Metrics::addProcess() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    };
    add(kProcessor, {}, seconds(usage.ru_utime) + seconds(usage.ru_stime));
    std::ifstream statm("/proc/self/statm");
    uint64_t pages = 0;
    uint64_t resident = 0;
    if (statm >> pages >> resident) {
        add(kResident, {}, asDouble(resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE))));
    }
}

Metrics::Sample& Metrics::sample(const Family& family, const Labels& labels, Collected*& in) {
    const auto known = std::ranges::find_if(
        families_, [&](const Collected& one) { return one.family.name == family.name; });
    in =
        known != families_.end() ? &*known : &families_.emplace_back(Collected{family, {}, {}, {}});
    Sample& made = in->samples.emplace_back();
    made.labels = own_;
    for (const auto& [name, value] : labels) {
        made.labels.push_back({name, texts_.emplace_back(value).c_str()});
    }
    return made;
}

void Metrics::add(const Family& family, const Labels& labels, double value) {
    Collected* in = nullptr;
    sample(family, labels, in).value = value;
}

template <size_t N>
void Metrics::addHistogram(const Family& family,
                           const Labels& labels,
                           const std::vector<double>& bounds,
                           const std::array<uint64_t, N>& buckets,
                           double sum) {
    Collected* in = nullptr;
    Sample& made = sample(family, labels, in);
    made.value = sum;
    made.buckets.assign(buckets.begin(), buckets.end());
    in->bounds = bounds;
}

const std::vector<nixl_metric>& Metrics::view() {
    view_.clear();
    for (Collected& one : families_) {
        one.shown.clear();
        for (const Sample& made : one.samples) {
            one.shown.push_back({made.labels.data(), made.labels.size(), made.value,
                                 made.buckets.empty() ? nullptr : made.buckets.data()});
        }
        view_.push_back({one.family.name, one.family.help, one.family.kind, one.bounds.data(),
                         one.bounds.size(), one.shown.data(), one.shown.size()});
    }
    return view_;
}

}  // namespace nixl::telemetry
