// What goes wrong, against the stand-in of the client and the failures it makes.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/shared_buffer.h"

#include "hf3fs_test_support.h"
#include "testing/gpu.h"

namespace nixl::hf3fs {
namespace {

using testing::HasSubstr;
using testkit::FileMode;
using testkit::Registered;
using testkit::Side;
using testkit::Subject;

constexpr uint64_t kSize = 8192;
constexpr uint64_t kMany = 100;

class Hf3fsTest : public testing::Test {
  protected:
    void TearDown() override { unsetenv("NIXL_HF3FS_STANDIN"); }

    Side& side(const std::string& config, const std::string& trouble = "") {
        setenv("NIXL_HF3FS_STANDIN", trouble.c_str(), 1);
        Subject subject("Hf3fs", "HF3FS", Subject::STORAGE);
        subject.table = &kPluginTable;
        subject.parameters = {{"mount_point", mount_.path()}, {"mem_config", config}};
        side_ = std::make_unique<Side>(subject, "test-agent");
        return *side_;
    }
    std::unique_ptr<Registered> memory(uint64_t size) {
        return std::make_unique<Registered>(*side_, testkit::makeHostBuffer(size, 8));
    }
    std::unique_ptr<Registered> file(uint64_t size) {
        return std::make_unique<Registered>(
            *side_, testkit::makeFileBuffer(size, FileMode::DESCRIPTOR, mount_.path()));
    }
    std::string refusal(const MemoryRegion& region) {
        auto made = side_->backend().registerMemory(region);
        return made.ok() ? "none" : made.status().message();
    }
    // Reads or writes a hundred pieces that nothing joins.
    std::shared_ptr<testkit::TestCompletion> hundred(OpType op, Registered& near, Registered& far) {
        testkit::Job job(op, near.region(), far.region(), side_->peer(true));
        for (uint64_t i = 0; i < kMany; ++i) {
            job.add({i * kSize, (i * 7 % kMany) * kSize, kSize});
        }
        EXPECT_TRUE(job.prepare(side_->backend()).ok());
        auto end = job.post();
        EXPECT_TRUE(job.wait(side_->backend(), *end));
        return end;
    }
    // Piece i of the memory against its place in the file.
    static bool arrived(Registered& near, Registered& far, uint64_t i) {
        return near.buffer().bytes(i * kSize, kSize) ==
               far.buffer().bytes((i * 7 % kMany) * kSize, kSize);
    }

    Mount mount_;
    std::unique_ptr<Side> side_;
};

Status creation(const std::string& mount) {
    testkit::TestServices services;
    Parameters parameters;
    parameters.set("mount_point", mount, true);
    parameters.set("mem_config", "dram", false);
    parameters.set("iopool_size", "64", false);
    return Hf3fsBackend::create(parameters, services).status();
}

TEST_F(Hf3fsTest, TheMountIsChecked) {
    EXPECT_TRUE(creation(mount_.path()).ok());
    std::filesystem::create_directories(mount_ / "below");
    EXPECT_TRUE(creation(mount_ / "below").ok()) << "a folder of the mount means the mount";
    EXPECT_THAT(creation("/no/such/mount").message(),
                HasSubstr("mount_point \"/no/such/mount\": No such file or directory"));
    EXPECT_THAT(creation("/usr").message(), HasSubstr("\"/usr\": not on a mounted 3FS"));
    EXPECT_THAT(creation("/etc/passwd").message(), HasSubstr("not a folder"));
    EXPECT_THAT(creation("").message(), HasSubstr("mount_point is not given"));
}

TEST_F(Hf3fsTest, FilesOfOtherFileSystemsAreRefused) {
    side("dram");
    const auto elsewhere = testkit::makeFileBuffer(kSize);
    EXPECT_THAT(refusal(elsewhere->region()),
                HasSubstr("it is not a file of the 3FS at " + mount_.path()));
    const auto by_path = testkit::makeFileBuffer(kSize, FileMode::PATH);
    EXPECT_THAT(refusal(by_path->region()),
                HasSubstr("it is not a file of the 3FS at " + mount_.path()));
    EXPECT_THAT(refusal({MemType::FILE, 0, kSize, 5, "rw,create:/dev/shm/nixl_not_of_3fs"}),
                HasSubstr("\"/dev/shm/nixl_not_of_3fs\": it is not a file of the 3FS"));
    EXPECT_FALSE(std::filesystem::exists("/dev/shm/nixl_not_of_3fs"));
    EXPECT_THAT(refusal({MemType::FILE, 0, kSize, 5, "rw:" + (mount_ / "none")}),
                HasSubstr("none\": No such file or directory"));
    EXPECT_THAT(refusal({MemType::FILE, 0, kSize, 99999, ""}), HasSubstr("fd 99999"));
    EXPECT_THAT(refusal({MemType::BLOCK, 0, kSize, 5, ""}), HasSubstr("BLOCK is not supported"));
}

TEST_F(Hf3fsTest, WithoutACopyMemoryHasToBeShared) {
    side("dram_zc");
    EXPECT_EQ(mount_.published(), 0U) << "no buffers of its own";
    const auto heap = testkit::makeHostBuffer(kSize);
    EXPECT_THAT(refusal(heap->region()), HasSubstr("it is private; 3FS takes mappings of files "
                                                   "below /dev/shm only (mem_config is dram_zc"));
    const SharedBuffer alloc = nixl::alloc(kSize);
    EXPECT_THAT(refusal({MemType::DRAM, reinterpret_cast<uint64_t>(alloc.data()), kSize, 0, {}}),
                HasSubstr("it is of /memfd:"));
    {
        Registered one(*side_, std::make_unique<ShmBuffer>(kSize));
        ASSERT_TRUE(one.ok()) << one.status().message();
        EXPECT_EQ(mount_.published(), 1U);
        MemoryRegion more = one.buffer().region();
        more.size = 1 << 20;
        EXPECT_THAT(refusal(more), HasSubstr("cannot be an iov"));
    }
    EXPECT_EQ(mount_.published(), 0U) << "taken back with the registration";
}

TEST_F(Hf3fsTest, AutoCopiesWhatIsNotShared) {
    side("auto");
    const auto far = file(kMany * kSize);
    far->buffer().fill(3);
    const auto near = memory(kMany * kSize);
    EXPECT_EQ(hundred(OpType::READ, *near, *far)->state(), XferState::DONE);
    Registered shared(*side_, std::make_unique<ShmBuffer>(kMany * kSize));
    testkit::Job job(OpType::READ, shared.region(), far->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 0, kMany * kSize}).prepare(side_->backend()).ok());
    EXPECT_EQ(job.transfer().describe().reason, "USRBIO, without a copy");
    EXPECT_TRUE(job.run(side_->backend()));
    EXPECT_EQ(side_->services().lines(LogLevel::INFO).size(), 1U) << "told once";
}

class Hf3fsTroubleTest : public Hf3fsTest, public testing::WithParamInterface<OpType> {};

INSTANTIATE_TEST_SUITE_P(Directions,
                         Hf3fsTroubleTest,
                         testing::Values(OpType::READ, OpType::WRITE),
                         [](const auto& info) {
                             return std::string(info.param == OpType::READ ? "Read" : "Write");
                         });

TEST_P(Hf3fsTroubleTest, OneOfAHundredFails) {
    side("dram", "fail_at=57345,errno=28");  // in the eighth piece of the file
    const auto far = file(kMany * kSize);
    const auto near = memory(kMany * kSize);
    far->buffer().fill(3);
    near->buffer().fill(4);
    const auto end = hundred(GetParam(), *near, *far);
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status().message(),
                HasSubstr(" at 57344: 0 of 8192 bytes, No space left on device"));
    ASSERT_EQ(end->failures().size(), 1U);
    EXPECT_EQ(end->failures()[0].planOffset, kSize) << "the second piece lies there";
    EXPECT_EQ(end->failures()[0].systemErrno, ENOSPC);
    for (uint64_t i = 0; i < kMany; ++i) {
        EXPECT_EQ(arrived(*near, *far, i), i != 1) << i;
    }
}

TEST_P(Hf3fsTroubleTest, ShortIoIsContinued) {
    side("dram", "short_every=2");
    const auto far = file(kMany * kSize);
    const auto near = memory(kMany * kSize);
    far->buffer().fill(3);
    near->buffer().fill(4);
    ASSERT_EQ(hundred(GetParam(), *near, *far)->state(), XferState::DONE);
    for (uint64_t i = 0; i < kMany; ++i) {
        EXPECT_TRUE(arrived(*near, *far, i)) << i;
    }
}

TEST_P(Hf3fsTroubleTest, WhatTheLibraryRefusesFailsAlone) {
    side("dram", "prep_every=10,errno=22");
    const auto far = file(kMany * kSize);
    const auto near = memory(kMany * kSize);
    far->buffer().fill(3);
    near->buffer().fill(4);
    const auto end = hundred(GetParam(), *near, *far);
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status().message(), HasSubstr("Invalid argument"));
    EXPECT_EQ(end->failures().size(), 10U);
    uint64_t there = 0;
    for (uint64_t i = 0; i < kMany; ++i) {
        there += arrived(*near, *far, i) ? 1 : 0;
    }
    EXPECT_EQ(there, 90U);
}

TEST_P(Hf3fsTroubleTest, ARingThatSaysItIsFullIsAskedAgain) {
    side("dram", "prep_every=3,errno=11");
    const auto far = file(kMany * kSize);
    const auto near = memory(kMany * kSize);
    far->buffer().fill(3);
    near->buffer().fill(4);
    ASSERT_EQ(hundred(GetParam(), *near, *far)->state(), XferState::DONE);
    for (uint64_t i = 0; i < kMany; ++i) {
        EXPECT_TRUE(arrived(*near, *far, i)) << i;
    }
}

TEST_F(Hf3fsTest, ReadingBeyondTheEnd) {
    side("dram");
    const auto far = file(kSize);
    far->buffer().fill(3);
    const auto near = memory(2 * kSize);
    testkit::Job job(OpType::READ, near->region(), far->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 4096, kSize}).prepare(side_->backend()).ok());
    const auto end = job.post();
    ASSERT_TRUE(job.wait(side_->backend(), *end));
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status().message(), HasSubstr("4096 of 8192 bytes, end of file"));
    EXPECT_EQ(near->buffer().bytes(0, 4096), testkit::pattern(3, 4096, 4096));
}

TEST_F(Hf3fsTest, ASlowFileSystemIsCanceled) {
    side("dram", "delay_us=2000,threads=1");
    const auto far = file(kMany * kSize);
    far->buffer().fill(3);
    const auto near = memory(kMany * kSize);
    testkit::Job job(OpType::READ, near->region(), far->region(), side_->peer(true));
    for (uint64_t i = 0; i < kMany; ++i) {
        job.add({i * kSize, (i * 7 % kMany) * kSize, kSize});
    }
    ASSERT_TRUE(job.prepare(side_->backend()).ok());
    const auto end = job.post();
    end->requestCancel();
    job.transfer().cancel();
    ASSERT_TRUE(job.wait(side_->backend(), *end));
    EXPECT_EQ(end->state(), XferState::CANCELED);
    EXPECT_TRUE(job.run(side_->backend())) << "and it posts again";
}

TEST_F(Hf3fsTest, GpuMemoryGoesThroughSharedBuffers) {
    testkit::StandinGpus gpus;
    side("dram");
    const std::string content(300'000, 'g');
    const uint64_t address = gpus.allocate(content);
    const MemoryRegion region{MemType::VRAM, address, content.size(), 0, {}};
    auto gpu = side_->backend().registerMemory(region);
    ASSERT_TRUE(gpu.ok()) << gpu.status().message();
    const auto far = file(content.size());
    const PlanRegion near{MemType::VRAM, address, content.size(), 0, {}, gpu.value().get()};
    testkit::Job job(OpType::WRITE, near, far->region(), side_->peer(true));
    ASSERT_TRUE(job.add({0, 0, content.size()}).run(side_->backend()));
    const std::vector<uint8_t> bytes = far->buffer().bytes(0, content.size());
    EXPECT_EQ(std::string(bytes.begin(), bytes.end()), content);
    gpu.value().reset();
    side("dram_zc");
    EXPECT_THAT(refusal(region), HasSubstr("which mem_config dram_zc excludes"));
    gpus.free(address);
}

}  // namespace
}  // namespace nixl::hf3fs
