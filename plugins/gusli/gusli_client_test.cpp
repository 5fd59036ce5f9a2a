// Devices of servers through the GUSLI client, against its stand-in (testing/standins), and what
// goes wrong with them.
#include "gusli_test_support.h"
#include "testing/gpu.h"

namespace nixl::gusli {
namespace {

using testing::HasSubstr;
using testkit::Registered;
using testkit::Side;

class GusliClientTest : public DeviceTest {
  protected:
    void SetUp() override { setenv("NIXL_GUSLI_LIBRARY", NIXL_GUSLI_STANDIN, 1); }
    void TearDown() override {
        side_.reset();
        setenv("NIXL_GUSLI_LIBRARY", NIXL_GUSLI_STANDIN, 1);
        unsetenv("NIXL_GUSLI_STANDIN");
    }
    static void standin(const std::string& words) {
        setenv("NIXL_GUSLI_STANDIN", words.c_str(), 1);
    }
    // What a server serves; the line that names it.
    std::string server(const std::string& name, uint64_t bytes, const char* access = "W") {
        return name + " N " + access + " D " + file(name, bytes) + " sec=0x10\n";
    }
    // Of the device of that number, which serves the file of that name.
    std::unique_ptr<Registered> blocks(uint64_t id, uint64_t size) {
        auto made = DeviceTest::blocks(folder_ / std::to_string(id), id, 0, size);
        EXPECT_TRUE(made->ok()) << made->status().message();
        return made;
    }
    // Writes `blocks` blocks in scattered order from memory at an odd address, and reads them back.
    void roundTrip(uint64_t id, uint64_t count, uint64_t block) {
        const auto near = memory(count * block, 3);
        const auto far = blocks(id, 8 * kMib);
        const auto back = memory(count * block, 1);
        near->buffer().fill(9);
        for (const OpType op : {OpType::WRITE, OpType::READ}) {
            Registered& place = op == OpType::WRITE ? *near : *back;
            testkit::Job job(op, place.region(), far->region(), side_->peer(true));
            for (uint64_t i = 0; i < count; ++i) {
                job.add({i * block, (i * 7 % count) * block, block});
            }
            ASSERT_TRUE(job.run(side_->backend()));
            EXPECT_THAT(job.transfer().describe().reason, HasSubstr("the GUSLI client"));
        }
        EXPECT_EQ(back->buffer().bytes(0, count * block), testkit::pattern(9, 0, count * block));
        for (uint64_t i = 0; i < count; ++i) {
            EXPECT_EQ(far->buffer().bytes((i * 7 % count) * block, block),
                      testkit::pattern(9, i * block, block));
        }
    }
};

TEST_F(GusliClientTest, AnyMemoryAndSingleBlocks) {
    side(server("1", 8 * kMib));
    roundTrip(1, 999, kBlock);
}

TEST_F(GusliClientTest, BlocksOfAnotherSize) {
    standin("block=65536");
    side(server("1", 8 * kMib));
    roundTrip(1, 101, 65536);
    auto near = memory(kMib);
    auto far = blocks(1, 8 * kMib);
    EXPECT_THAT(prepared(OpType::READ, *near, *far, {0, 4096, 65536}).message(),
                HasSubstr("multiples of its block size, 65536 bytes"));
    EXPECT_THAT(prepared(OpType::READ, *near, *far, {0, 0, 4096}).message(),
                HasSubstr("multiples of its block size, 65536 bytes"));
}

// The client puts off what is too much at once.
TEST_F(GusliClientTest, RequestsThatArePutOffAreSubmittedAgain) {
    standin("most=2,threads=1");
    side(server("1", 8 * kMib));
    roundTrip(1, 300, kBlock);
}

TEST_F(GusliClientTest, SeveralDevicesInOneTransfer) {
    side(server("1", kMib) + server("2", kMib));
    const auto near = memory(8 * kBlock);
    near->buffer().fill(4);
    const auto first = blocks(1, kMib);
    const auto second = blocks(2, kMib);
    const PlanRegion here = near->region();
    const std::array<PlanRegion, 2> there{first->region(), second->region()};
    std::vector<PlanRun> runs;
    for (uint64_t i = 0; i < 8; ++i) {
        PlanRun run;
        run.local = here.address + i * kBlock;
        run.remote = i * kBlock;
        run.size = kBlock;
        run.planOffset = i * kBlock;
        run.remoteRegion = static_cast<uint32_t>(i % 2);
        runs.push_back(run);
    }
    TransferPlan plan;
    plan.op = OpType::WRITE;
    plan.localRegions = {&here, 1};
    plan.remoteRegions = there;
    plan.runs = runs;
    plan.bytes = 8 * kBlock;
    plan.segments = 8;
    plan.descriptors = 8;
    auto transfer = side_->backend().prepareTransfer(plan);
    ASSERT_TRUE(transfer.ok()) << transfer.status().message();
    const auto end = std::make_shared<testkit::TestCompletion>();
    ASSERT_TRUE(transfer.value()->post(end, {}, false).ok());
    ASSERT_TRUE(end->waitFor(testkit::kPatience));
    EXPECT_EQ(end->state(), XferState::DONE) << end->status().message();
    for (uint64_t i = 0; i < 8; ++i) {
        Registered& device = i % 2 == 0 ? *first : *second;
        EXPECT_EQ(device.buffer().bytes(i * kBlock, kBlock),
                  testkit::pattern(4, i * kBlock, kBlock));
    }
}

TEST_F(GusliClientTest, OneOfAHundredFails) {
    standin("fail_at=" + std::to_string(74 * kBlock + 5));
    side(server("1", kMib));
    auto near = memory(100 * kBlock);
    auto far = blocks(1, kMib);
    far->buffer().fill(6);
    testkit::Job job(OpType::READ, near->region(), far->region(), side_->peer(true));
    for (uint64_t i = 0; i < 100; ++i) {  // every second block, so that none are joined
        job.add({i * kBlock, 2 * i * kBlock, kBlock});
    }
    ASSERT_TRUE(job.prepare(side_->backend()).ok());
    const auto end = job.post();
    ASSERT_NE(end, nullptr);
    ASSERT_TRUE(end->waitFor(testkit::kPatience));
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status().message(), HasSubstr("read device 1 (\"" + (folder_ / "1") +
                                                   "\") at 303104: 0 of 4096 bytes, "
                                                   "Remote I/O error"));
    ASSERT_EQ(end->failures().size(), 1U);
    EXPECT_EQ(end->failures()[0].planOffset, 37 * kBlock);
    for (uint64_t i = 0; i < 100; ++i) {
        if (i != 37) {
            EXPECT_EQ(near->buffer().bytes(i * kBlock, kBlock),
                      testkit::pattern(6, i * 2 * kBlock, kBlock))
                << i;
        }
    }
}

TEST_F(GusliClientTest, GpuMemoryGoesThroughTheSameBuffers) {
    testkit::StandinGpus gpus;
    side(server("1", 8 * kMib));
    const std::string text(3 * kMib + 2 * kBlock, 'g');
    const uint64_t from = gpus.allocate(text);
    const uint64_t back = gpus.allocate(text.size());
    const auto far = blocks(1, 8 * kMib);
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        const uint64_t address = op == OpType::WRITE ? from : back;
        auto gpu = side_->backend().registerMemory({MemType::VRAM, address, text.size(), 0, {}});
        ASSERT_TRUE(gpu.ok()) << gpu.status().message();
        const PlanRegion near{MemType::VRAM, address, text.size(), 0, {}, gpu.value().get()};
        testkit::Job job(op, near, far->region(), side_->peer(true));
        ASSERT_TRUE(job.add({0, kBlock, text.size()}).run(side_->backend()));
    }
    EXPECT_TRUE(testkit::StandinGpus::text(back, text.size()) == text);
    EXPECT_EQ(far->buffer().bytes(kBlock, 1)[0], 'g');
}

TEST_F(GusliClientTest, EveryDeviceGoesThroughTheClientWhereThatIsWanted) {
    const std::string path = file("2", kMib);
    const std::string lines = server("1", 8 * kMib) + "2 F W N " + path + "\n";
    side(lines, {{"use_client", "all"}});
    const auto near = memory(kBlock);
    const auto network = blocks(1, kMib);
    const auto plain = blocks(2, kMib);
    testkit::Job job(OpType::READ, near->region(), plain->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 0, kBlock}).run(side_->backend()));
    EXPECT_THAT(job.transfer().describe().reason, HasSubstr("the GUSLI client"));
}

// One transfer has one engine.
TEST_F(GusliClientTest, NativeAndNetworkDevicesAreNotMixed) {
    const std::string path = folder_ / "2";
    side(server("1", kMib) + "2 F W N " + path + "\n");
    auto near = memory(2 * kBlock);
    auto network = blocks(1, kMib);
    auto plain = DeviceTest::blocks(path, 2, 0, kMib, true);
    ASSERT_TRUE(plain->ok()) << plain->status().message();
    testkit::Job alone(OpType::WRITE, near->region(), plain->region(), side_->peer(true));
    ASSERT_TRUE(alone.add({0, 0, kBlock}).run(side_->backend()));
    EXPECT_THAT(alone.transfer().describe().reason, HasSubstr("native"));
    const PlanRegion here = near->region();
    const std::array<PlanRegion, 2> there{network->region(), plain->region()};
    TransferPlan plan;
    plan.op = OpType::READ;
    plan.localRegions = {&here, 1};
    plan.remoteRegions = there;
    auto transfer = side_->backend().prepareTransfer(plan);
    EXPECT_EQ(transfer.status().code(), ErrorCode::NOT_SUPPORTED);
    EXPECT_THAT(transfer.status().message(), HasSubstr("use a transfer for each"));
}

TEST_F(GusliClientTest, EndsAndReadOnlyAreKept) {
    side(server("1", kMib) + server("2", kMib, "R"));
    auto near = memory(2 * kMib);
    auto far = blocks(1, kMib);
    auto fixed = blocks(2, kMib);
    EXPECT_THAT(prepared(OpType::READ, *near, *far, {0, kMib - kBlock, 2 * kBlock}).message(),
                HasSubstr("8192 bytes at 1044480 reach beyond its end, 1048576 bytes"));
    EXPECT_THAT(prepared(OpType::WRITE, *near, *fixed, {0, 0, kBlock}).message(),
                HasSubstr("its access is R, read only"));
    auto more = side_->backend().registerMemory({MemType::BLOCK, 0, kMib + kBlock, 1, {}});
    EXPECT_THAT(more.status().message(), HasSubstr("it has only 1048576 bytes"));
}

TEST_F(GusliClientTest, QueryAsksTheServer) {
    side(server("1", kMib) + "2 N W N " + (folder_ / "none") + " sec=0x1\n");
    const std::array<MemoryRegion, 2> asked{MemoryRegion{MemType::BLOCK, 0, 0, 1, {}},
                                            MemoryRegion{MemType::BLOCK, 0, 0, 2, {}}};
    const auto answers = side_->backend().query()->query(asked);
    ASSERT_TRUE(answers.ok());
    ASSERT_TRUE(answers.value()[0].has_value());
    const std::map<std::string, std::string> first =
        answers.value()[0].value_or(std::map<std::string, std::string>());
    EXPECT_EQ(first.at("size"), std::to_string(kMib));
    EXPECT_EQ(first.at("block_size"), "4096");
    EXPECT_EQ(first.at("kind"), "N");
    EXPECT_FALSE(answers.value()[1].has_value());
}

TEST_F(GusliClientTest, WithoutTheClientTheErrorSaysWhatIsMissing) {
    setenv("NIXL_GUSLI_LIBRARY", "/no/such/adapter.so", 1);
    EXPECT_THAT(refusal(server("1", kMib)),
                testing::AllOf(HasSubstr("/no/such/adapter.so: cannot open shared object file"),
                               HasSubstr("NIXL_GUSLI_LIBRARY"),
                               HasSubstr("(device 1 (\"" + (folder_ / "1") + "\") goes through")));
    setenv("NIXL_GUSLI_LIBRARY", "libc.so.6", 1);
    EXPECT_THAT(refusal(server("1", kMib)),
                HasSubstr("libc.so.6 is no adapter of the GUSLI client: it has no "
                          "nixl_gusli_client"));
}

TEST_F(GusliClientTest, WhatTheClientRefusesNamesTheDevice) {
    const std::string none = folder_ / "none";
    EXPECT_THAT(refusal("1 N W N " + none + " sec=0x1\n"),
                HasSubstr("device 1 (\"" + none +
                          "\"): the GUSLI client cannot connect: no response of the server (-99)"));
    standin("refuse_share=1");
    EXPECT_THAT(refusal(server("1", kMib)),
                HasSubstr("cannot share 64 MiB of buffers with its server: wrong arguments (-97)"));
    standin("block=12288");
    EXPECT_THAT(refusal(server("1", kMib)),
                HasSubstr("its blocks of 12288 bytes do not fill buffers of 1048576 bytes"));
    standin("block=65536");
    EXPECT_THAT(refusal(server("1", kBlock)), HasSubstr("0 blocks of 65536 bytes"));
}

TEST_F(GusliClientTest, WhatDoesNotFitIntoTheClientsListIsToldBefore) {
    EXPECT_THAT(refusal("1 N W N /" + std::string(80, 'p') + " sec=0x1\n"),
                HasSubstr("has 81 bytes; the GUSLI client takes at most 64"));
    EXPECT_THAT(refusal("1 N W N /a sec=0123456789abcdef\n"),
                HasSubstr("line 2: the cookie has 20 bytes; the GUSLI client takes at most 15"));
    std::string many;
    for (int i = 1; i <= 40; ++i) {
        many += std::to_string(i) + " N W N /" + std::string(30, 'p') + "\n";
    }
    EXPECT_THAT(refusal(many), HasSubstr("the 40 devices that go through the GUSLI client make a "
                                         "list of 1883 bytes, of which it reads only 1023"));
}

TEST_F(GusliClientTest, AProcessHasOneClient) {
    const std::string lines = server("1", kMib);
    side(lines);
    const auto held = blocks(1, kMib);
    {
        Side same(subject(lines, {}), "same");
        const auto shared = same.backend().registerMemory({MemType::BLOCK, 0, kBlock, 1, {}});
        EXPECT_TRUE(shared.ok()) << shared.status().message();
    }
    const auto near = memory(kBlock);
    testkit::Job job(OpType::READ, near->region(), held->region(), side_->peer(true));
    EXPECT_TRUE(job.add({0, 0, kBlock}).run(side_->backend()));
    Side other(subject(server("2", kMib), {}), "other");
    const auto refused = other.backend().registerMemory({MemType::BLOCK, 0, kBlock, 2, {}});
    EXPECT_EQ(refused.status().code(), ErrorCode::NOT_ALLOWED);
    EXPECT_THAT(refused.status().message(), HasSubstr("runs already with another list"));
}

TEST_F(GusliClientTest, CancelDropsWhatWasNotSentAndWaitsForTheRest) {
    const std::string hold = folder_ / "hold";
    std::ofstream(hold).close();
    standin("threads=1,hold=" + hold);
    side(server("1", 256 * kMib), {{"max_num_simultaneous_requests", "4"}});
    auto near = memory(16 * kMib);
    auto far = blocks(1, 256 * kMib);
    testkit::Job job(OpType::READ, near->region(), far->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 0, 16 * kMib}).prepare(side_->backend()).ok());
    const auto end = job.post();
    ASSERT_NE(end, nullptr);
    job.transfer().cancel();
    std::filesystem::remove(hold);
    ASSERT_TRUE(end->waitFor(testkit::kPatience));
    EXPECT_EQ(end->state(), XferState::CANCELED);
}

}  // namespace
}  // namespace nixl::gusli
