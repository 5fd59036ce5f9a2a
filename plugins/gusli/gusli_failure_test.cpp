// What goes wrong: each is an error that names the device, the value and the cause.
#include "gusli_test_support.h"

namespace nixl::gusli {
namespace {

using testing::HasSubstr;
using testkit::Piece;
using testkit::Registered;

class GusliTest : public DeviceTest {};

TEST_F(GusliTest, EachKindWantsItsOwn) {
    const std::string plain = file("plain", kMib);
    EXPECT_THAT(
        refusal("1 K W D " + plain + " sec=0x3\n"),
        HasSubstr("device 1 (\"" + plain + "\") is a plain file; kind K wants a block device"));
    EXPECT_THAT(refusal("1 F W D " + (folder_ / "") + " sec=0x3\n"),
                HasSubstr("is a directory; kind F wants a plain file"));
    EXPECT_THAT(refusal("1 F W D /dev/null sec=0x3\n"),
                HasSubstr("is a character device; kind F wants a plain file"));
    EXPECT_THAT(refusal("1 K W D /dev/no-such-device sec=0x3\n"),
                HasSubstr("/dev/no-such-device\"): No such file or directory"));
    EXPECT_THAT(refusal("1 F R D " + (folder_ / "none") + " sec=0x3\n"),
                HasSubstr("No such file or directory"));
    EXPECT_THAT(refusal("1 F W D /no/such/folder/file sec=0x3\n"),
                HasSubstr("No such file or directory"));
    EXPECT_THAT(refusal("7 F W N " + plain + "\n8 F W N " + plain + "\n"),
                HasSubstr("register device 1: config_file has none of that id; it has 7, 8"));
}

TEST_F(GusliTest, AFileThatIsNotThereIsMadeAndGrows) {
    const std::string path = folder_ / "new";
    side("1 F W N " + path + " sec=0x3\n");
    auto near = memory(kMib);
    auto far = blocks(path, 1, 0, kMib);
    ASSERT_TRUE(far->ok()) << far->status().message();
    near->buffer().fill(5);
    testkit::Job job(OpType::WRITE, near->region(), far->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 0, kMib}).run(side_->backend()));
    EXPECT_EQ(std::filesystem::file_size(path), kMib);
    EXPECT_EQ(far->buffer().bytes(0, kMib), testkit::pattern(5, 0, kMib));
}

class GusliLoopTest : public GusliTest, public testing::WithParamInterface<unsigned> {};

INSTANTIATE_TEST_SUITE_P(Sectors, GusliLoopTest, testing::Values(512U, 4096U));

TEST_P(GusliLoopTest, OffsetsAndLengthsAreWholeBlocks) {
    const LoopDevice loop(8 * kMib, GetParam());
    if (loop.path().empty()) {
        GTEST_SKIP() << LoopDevice::kNone;
    }
    const std::string block = std::to_string(GetParam());
    side("1 K W D " + loop.path() + " sec=0x7\n");
    auto near = memory(kMib);
    auto far = blocks(loop.path(), 1, 0, 8 * kMib);
    ASSERT_TRUE(far->ok()) << far->status().message();
    const std::string rule =
        "offsets and lengths must be multiples of its block size, " + block + " bytes";
    for (const Piece& piece : {Piece{0, 100, 4096}, Piece{0, 0, 1000}, Piece{0, 4096, 256}}) {
        const Status status = prepared(OpType::READ, *near, *far, piece);
        EXPECT_EQ(status.code(), ErrorCode::INVALID_PARAM);
        EXPECT_THAT(status.message(), HasSubstr(rule));
        EXPECT_THAT(status.message(), HasSubstr(std::to_string(piece.size) + " bytes at " +
                                                std::to_string(piece.remote)));
    }
    EXPECT_TRUE(prepared(OpType::READ, *near, *far, {0, GetParam(), GetParam()}).ok());
}

TEST_P(GusliLoopTest, ADeviceSmallerThanTheDescriptor) {
    const LoopDevice loop(kMib, GetParam());
    if (loop.path().empty()) {
        GTEST_SKIP() << LoopDevice::kNone;
    }
    const std::string line = "1 K W D " + loop.path() + " sec=0x7\n";
    EXPECT_THAT(refusal(line, 0, kMib + 4096),
                HasSubstr("register 1052672 bytes at 0 of device 1 (\"" + loop.path() +
                          "\"): it has only 1048576 bytes"));
    EXPECT_THAT(refusal(line, kMib, 1), HasSubstr("it has only 1048576 bytes"));
    EXPECT_THAT(refusal(line, UINT64_MAX - 5, 4096), HasSubstr("it has only 1048576 bytes"));
    auto near = memory(2 * kMib);
    auto far = blocks(loop.path(), 1, 0, kMib);
    ASSERT_TRUE(far->ok()) << far->status().message();
    for (const OpType op : {OpType::READ, OpType::WRITE}) {
        const Status status = prepared(op, *near, *far, {0, kMib - 4096, 8192});
        EXPECT_EQ(status.code(), ErrorCode::INVALID_PARAM);
        EXPECT_THAT(status.message(), HasSubstr("8192 bytes at 1044480 reach beyond its end, "
                                                "1048576 bytes"));
    }
}

// Block by block, at odd addresses and in scattered order: every byte where it belongs.
TEST_P(GusliLoopTest, AnyMemoryAndSingleBlocks) {
    const LoopDevice loop(8 * kMib, GetParam());
    if (loop.path().empty()) {
        GTEST_SKIP() << LoopDevice::kNone;
    }
    const uint64_t block = GetParam();
    side("1 K W D " + loop.path() + " sec=0x7\n", {{"max_num_simultaneous_requests", "64"}});
    EXPECT_STREQ(static_cast<GusliBackend&>(side_->backend()).engineName(), "io_uring");
    constexpr uint64_t kBlocks = 999;
    const auto near = memory(kBlocks * block, 3);
    const auto far = blocks(loop.path(), 1, 0, 8 * kMib);
    const auto back = memory(kBlocks * block, 1);
    near->buffer().fill(9);
    for (const OpType op : {OpType::WRITE, OpType::READ}) {
        Registered& place = op == OpType::WRITE ? *near : *back;
        testkit::Job job(op, place.region(), far->region(), side_->peer(true));
        for (uint64_t i = 0; i < kBlocks; ++i) {
            job.add({i * block, (i * 7 % kBlocks) * block, block});
        }
        ASSERT_TRUE(job.run(side_->backend()));
    }
    EXPECT_EQ(back->buffer().bytes(0, kBlocks * block), near->buffer().bytes(0, kBlocks * block));
}

TEST_F(GusliTest, ReadOnlyIsNotWritten) {
    const std::string path = file("a", kMib);
    side("1 F R N " + path + " sec=0x3\n");
    auto near = memory(4096);
    auto far = blocks(path, 1, 0, kMib);
    EXPECT_TRUE(prepared(OpType::READ, *near, *far, {0, 0, 4096}).ok());
    const Status status = prepared(OpType::WRITE, *near, *far, {0, 0, 4096});
    EXPECT_EQ(status.code(), ErrorCode::NOT_ALLOWED);
    EXPECT_THAT(status.message(), HasSubstr("its access is R, read only"));
}

TEST_F(GusliTest, ExclusiveAccessIsKept) {
    const std::string path = file("a", kMib);
    side("1 F X N " + path + "\n");
    const auto held = side_->backend().registerMemory({MemType::BLOCK, 0, 4096, 1, {}});
    ASSERT_TRUE(held.ok());
    const auto first = std::move(side_);
    EXPECT_THAT(refusal("1 F W N " + path + "\n"), HasSubstr("is used exclusively (X)"));
    EXPECT_THAT(refusal("1 F X N " + path + "\n"), HasSubstr("is in use; access X wants it alone"));
}

TEST_F(GusliTest, OneOfAHundredDevicesEndsEarly) {
    std::string lines;
    for (int i = 0; i < 100; ++i) {
        lines += std::to_string(i) + " F W N " + (folder_ / std::to_string(i)) + "\n";
    }
    side(lines);
    std::vector<std::unique_ptr<Registered>> far;
    std::vector<PlanRegion> regions;
    std::vector<PlanRun> runs;
    const auto near = memory(size_t{100} * 8192);
    for (uint64_t i = 0; i < 100; ++i) {
        far.push_back(blocks(folder_ / std::to_string(i), i, 0, 8192, true));
        ASSERT_TRUE(far.back()->ok()) << far.back()->status().message();
        far.back()->buffer().fill(i);
        regions.push_back(far.back()->region());
        PlanRun run;
        run.local = near->region().address + i * 8192;
        run.size = 8192;
        run.planOffset = i * 8192;
        run.remoteRegion = static_cast<uint32_t>(i);
        runs.push_back(run);
    }
    ASSERT_TRUE(far[37]->buffer().truncate(4096));
    const PlanRegion here = near->region();
    TransferPlan plan;
    plan.op = OpType::READ;
    plan.localRegions = {&here, 1};
    plan.remoteRegions = regions;
    plan.runs = runs;
    plan.bytes = uint64_t{100} * 8192;
    plan.segments = 100;
    plan.descriptors = 100;
    auto transfer = side_->backend().prepareTransfer(plan);
    ASSERT_TRUE(transfer.ok()) << transfer.status().message();
    const auto end = std::make_shared<testkit::TestCompletion>();
    ASSERT_TRUE(transfer.value()->post(end, {}, false).ok());
    ASSERT_TRUE(end->waitFor(testkit::kPatience));
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status().message(), HasSubstr("read device 37 (\""));
    EXPECT_THAT(end->status().message(), HasSubstr("4096 of 8192 bytes, end of file"));
    ASSERT_EQ(end->failures().size(), 1U);
    EXPECT_EQ(end->failures()[0].planOffset, 37U * 8192);
    EXPECT_EQ(end->failures()[0].done, 4096U);
    for (uint64_t i = 0; i < 100; ++i) {
        const uint64_t whole = i == 37 ? 4096 : 8192;
        EXPECT_EQ(near->buffer().bytes(i * 8192, whole), testkit::pattern(i, 0, whole)) << i;
    }
}

TEST_F(GusliTest, QueryTellsOfDevices) {
    const std::string path = file("a", kMib);
    side("1 F W N " + path + "\n2 K W N /dev/no-such-device\n");
    const std::array<MemoryRegion, 3> asked{MemoryRegion{MemType::BLOCK, 0, 0, 1, {}},
                                            MemoryRegion{MemType::BLOCK, 0, 0, 2, {}},
                                            MemoryRegion{MemType::BLOCK, 0, 0, 3, {}}};
    const auto answers = side_->backend().query()->query(asked);
    ASSERT_TRUE(answers.ok());
    ASSERT_EQ(answers.value().size(), 3U);
    ASSERT_TRUE(answers.value()[0].has_value());
    const std::map<std::string, std::string> first =
        answers.value()[0].value_or(std::map<std::string, std::string>());
    EXPECT_EQ(first.at("size"), std::to_string(kMib));
    EXPECT_EQ(first.at("path"), path);
    EXPECT_EQ(first.at("kind"), "F");
    EXPECT_EQ(std::stoul(first.at("block_size")) % 512, 0U);
    EXPECT_FALSE(answers.value()[1].has_value());
    EXPECT_FALSE(answers.value()[2].has_value());
}

}  // namespace
}  // namespace nixl::gusli
