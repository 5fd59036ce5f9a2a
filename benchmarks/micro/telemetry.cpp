// What counting a transfer costs: a post and an end, of one thread and of several in one series.
// series.
#include <benchmark/benchmark.h>

#include "telemetry/series.h"

namespace nixl::telemetry {
namespace {

void countTransfer(benchmark::State& state) {
    static SeriesTable table;
    const SeriesPtr series = table.find("UCX", "host", "peer", OpType::WRITE);
    std::chrono::nanoseconds time(1000);
    for (auto step : state) {
        series->posted();
        series->ended(End::DONE, 4096, ++time);
    }
}
BENCHMARK(countTransfer)->Threads(1)->Threads(2)->Threads(8);

void findSeries(benchmark::State& state) {
    SeriesTable table;
    const SeriesPtr held = table.find("UCX", "host", "peer", OpType::WRITE);
    for (auto step : state) {
        benchmark::DoNotOptimize(table.find("UCX", "host", "peer", OpType::WRITE));
    }
}
BENCHMARK(findSeries);

}  // namespace
}  // namespace nixl::telemetry

BENCHMARK_MAIN();
