// The region table: 10,000 regions registered and deregistered; 200 rounds must cost the same from
// the first to the last. One thread.
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "memory/region_table.h"

namespace {

using nixl::MemType;
using nixl::RegistrationList;
using nixl::memory::RegionTable;

constexpr size_t kRegions = 10'000;
constexpr int kRounds = 200;

RegistrationList makeList(bool shuffled) {
    RegistrationList list(MemType::DRAM);
    for (uint64_t i = 0; i < kRegions; ++i) {
        list.append(0x7f00'0000'0000 + i * 8192, 4096);
    }
    if (shuffled) {
        std::mt19937_64 random(1);  // NOLINT: the same every run
        std::shuffle(list.entries.begin(), list.entries.end(), random);
    }
    return list;
}

void add(RegionTable& table, const RegistrationList& list) {
    std::vector<RegionTable::Addition> additions(list.entries.size());
    for (size_t i = 0; i < additions.size(); ++i) {
        additions[i].entry = &list.entries[i];
        additions[i].memories.emplace_back(0U, std::make_unique<nixl::BackendMemory>());
    }
    table.add(MemType::DRAM, std::move(additions));
}

void registerRounds(benchmark::State& state) {
    const RegistrationList list = makeList(state.range(0) != 0);
    using Clock = std::chrono::steady_clock;
    for (auto _ : state) {
        RegionTable table;
        std::vector<double> rounds;
        for (int i = 0; i < kRounds; ++i) {
            const auto start = Clock::now();
            add(table, list);
            if (!table.remove(list, {0}, start + std::chrono::seconds(60)).ok()) {
                state.SkipWithError("remove");
                return;
            }
            rounds.push_back(
                std::chrono::duration<double, std::milli>(Clock::now() - start).count());
        }
        const auto median = [](auto first, auto last) {
            std::vector<double> some(first, last);
            // NOLINTNEXTLINE(bugprone-narrowing-conversions)
            std::nth_element(some.begin(), some.begin() + some.size() / 2, some.end());
            return some[some.size() / 2];
        };
        state.counters["first_20_ms"] = median(rounds.begin(), rounds.begin() + 20);
        state.counters["last_20_ms"] = median(rounds.end() - 20, rounds.end());
    }
}
BENCHMARK(registerRounds)
    ->ArgName("shuffled")
    ->Arg(0)
    ->Arg(1)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

void lookUp(benchmark::State& state) {
    const RegistrationList list = makeList(true);
    RegionTable table;
    add(table, list);
    nixl::DescriptorList wanted(MemType::DRAM);
    wanted.append(list.entries[1].address + 100, 200);
    for (auto _ : state) {
        nixl::memory::ResolvedSide side;
        std::vector<nixl::memory::RegionUse> uses;
        benchmark::DoNotOptimize(table.resolve(wanted, 0, side, uses));
    }
}
BENCHMARK(lookUp);

}  // namespace

BENCHMARK_MAIN();
