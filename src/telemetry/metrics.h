// What an agent has counted, as the metrics that exporters are given: names, labels and help are
// decided here. docs/telemetry.md lists them. A value; not thread-safe.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "nixl/exporter.h"
#include "nixl/telemetry.h"

namespace nixl::telemetry {

class Metrics {
  public:
    explicit Metrics(const AgentTelemetry& telemetry);
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    // Adds one sample to a metric, with the agent's labels and these.
    struct Family {
        const char* name;
        const char* help;
        nixl_metric_kind kind;
    };
    using Labels = std::vector<std::pair<const char*, std::string>>;
    void add(const Family& family, const Labels& labels, double value);
    // As long as this object, and until more is added.
    const std::vector<nixl_metric>& view();

  private:
    struct Sample {
        std::vector<nixl_label> labels;
        std::vector<uint64_t> buckets;
        double value = 0;
    };
    struct Collected {
        Family family;
        std::vector<double> bounds;
        std::deque<Sample> samples;
        std::vector<nixl_sample> shown;
    };
    Sample& sample(const Family& family, const Labels& labels, Collected*& in);
    template <size_t N>
    void addHistogram(const Family& family,
                      const Labels& labels,
                      const std::vector<double>& bounds,
                      const std::array<uint64_t, N>& buckets,
                      double sum);
    void addTransfers(const TransferCounts& counts);
    void addHistograms(const std::vector<TransferCounts>& all);
    void addProcess();

    std::deque<std::string> texts_;
    std::deque<Collected> families_;
    std::vector<nixl_label> own_;
    std::vector<nixl_metric> view_;
};

}  // namespace nixl::telemetry
