// Resolving descriptor lists and pairing them into plans, without an agent. One thread.
#include "memory/plan.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "memory/region_table.h"

namespace {

using nixl::DescriptorList;
using nixl::MemType;
using nixl::RegistrationList;
using nixl::memory::RegionTable;
using nixl::memory::RegionUse;
using nixl::memory::ResolvedSide;

constexpr uint64_t kBase = 0x7f00'0000'0000;
constexpr uint64_t kBlock = 4096;

std::vector<uint64_t> rows(size_t count, bool regular) {
    std::vector<uint64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (!regular) {
        std::mt19937_64 random(1);  // NOLINT: the same every run
        std::shuffle(order.begin(), order.end(), random);
    }
    std::vector<uint64_t> out;
    out.reserve(count * 3);
    for (const uint64_t place : order) {
        out.insert(out.end(), {kBase + place * kBlock, kBlock, 0});
    }
    return out;
}

// One region that holds everything.
void fill(RegionTable& table, size_t blocks) {
    RegistrationList list(MemType::DRAM);
    list.append(kBase, blocks * kBlock);
    std::vector<RegionTable::Addition> additions(1);
    additions[0].entry = list.entries.data();
    additions[0].memories.emplace_back(0U, std::make_unique<nixl::BackendMemory>());
    table.add(MemType::DRAM, std::move(additions));
}

ResolvedSide resolved(const RegionTable& table, const DescriptorList& list) {
    ResolvedSide side;
    std::vector<RegionUse> uses;
    if (!table.resolve(list, 0, side, uses).ok()) {
        std::abort();
    }
    return side;
}

void readRows(benchmark::State& state) {
    const auto count = static_cast<size_t>(state.range(0));
    const std::vector<uint64_t> data = rows(count, state.range(1) != 0);
    for (auto _ : state) {
        auto list = DescriptorList::fromRows(MemType::DRAM, data.data(), count, 3);
        benchmark::DoNotOptimize(list);
    }
}
BENCHMARK(readRows)->ArgNames({"count", "regular"})->ArgsProduct({{200'000}, {0, 1}});

void resolveList(benchmark::State& state) {
    const auto count = static_cast<size_t>(state.range(0));
    RegionTable table;
    fill(table, count);
    const std::vector<uint64_t> data = rows(count, state.range(1) != 0);
    const auto list = DescriptorList::fromRows(MemType::DRAM, data.data(), count, 3);
    for (auto _ : state) {
        benchmark::DoNotOptimize(resolved(table, list.value()));
    }
}
BENCHMARK(resolveList)->ArgNames({"count", "regular"})->ArgsProduct({{200'000}, {0, 1}});

// The indices of make_prepped_xfer over lists that stay compressed.
void pairIndices(benchmark::State& state) {
    const size_t all = 200'000;
    const auto count = static_cast<size_t>(state.range(0));
    RegionTable table;
    fill(table, all);
    const std::vector<uint64_t> data = rows(all, state.range(1) != 0);
    const auto list = DescriptorList::fromRows(MemType::DRAM, data.data(), all, 3);
    const ResolvedSide side = resolved(table, list.value());
    std::vector<int32_t> left(all);
    std::iota(left.begin(), left.end(), 0);
    std::vector<int32_t> right = left;
    std::mt19937_64 random(2);  // NOLINT
    std::shuffle(left.begin(), left.end(), random);
    std::shuffle(right.begin(), right.end(), random);
    left.resize(count);
    right.resize(count);
    for (auto _ : state) {
        auto plan = nixl::memory::pairIndices<int32_t>(side, left, side, right, true);
        benchmark::DoNotOptimize(plan);
    }
    state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(pairIndices)->ArgNames({"count", "regular"})->ArgsProduct({{1'000, 10'000}, {0, 1}});

void pairSides(benchmark::State& state) {
    const auto count = static_cast<size_t>(state.range(0));
    RegionTable table;
    fill(table, count);
    const std::vector<uint64_t> data = rows(count, state.range(1) != 0);
    const auto list = DescriptorList::fromRows(MemType::DRAM, data.data(), count, 3);
    const ResolvedSide side = resolved(table, list.value());
    for (auto _ : state) {
        auto plan = nixl::memory::pairSides(side, side, false);
        benchmark::DoNotOptimize(plan);
    }
}
BENCHMARK(pairSides)->ArgNames({"count", "regular"})->ArgsProduct({{200'000}, {0, 1}});

}  // namespace

BENCHMARK_MAIN();
