// GPU memory through the driver, against the stand-in.
#include "device/devices.h"

#include <cstdlib>
#include <cstring>
#include <future>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "testing/gpu.h"

namespace nixl::device {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 1 << 20;

uint64_t at(const void* address) {
    return reinterpret_cast<uint64_t>(address);
}

class DevicesTest : public testing::Test {
  protected:
    testkit::StandinGpus gpus_;
    Devices& devices_ = devices();
};

TEST_F(DevicesTest, ListsTheGpus) {
    EXPECT_TRUE(devices_.likely());
    const auto all = devices_.list();
    ASSERT_TRUE(all.ok()) << all.status().message();
    ASSERT_EQ(all.value().size(), 2U);
    EXPECT_EQ(all.value()[1].name, "Stand-in GPU 1");
    EXPECT_EQ(all.value()[1].pciAddress, "0000:11:00.0");
    EXPECT_NE(all.value()[0].identity, all.value()[1].identity);
    EXPECT_EQ(devices_.driverVersion().value(), 13000);
}

TEST_F(DevicesTest, TellsWhatAnAddressIs) {
    const uint64_t memory = gpus_.allocate(kSize, 1);
    const auto inside = devices_.find(memory + 5);
    ASSERT_TRUE(inside.ok());
    EXPECT_EQ(inside.value().kind, DeviceMemoryKind::DEVICE);
    EXPECT_EQ(inside.value().device, 1);
    EXPECT_EQ(inside.value().base, memory);
    EXPECT_EQ(inside.value().size, kSize);
    const std::string host(100, 'x');
    EXPECT_EQ(devices_.find(at(host.data())).value().kind, DeviceMemoryKind::HOST);
    EXPECT_FALSE(devices_.find(at(host.data())).value().pinned);
    const uint64_t managed = gpus_.allocateManaged(kSize);
    EXPECT_EQ(devices_.find(managed).value().kind, DeviceMemoryKind::MANAGED);
    gpus_.free(managed);
    gpus_.free(memory);
    const uint64_t again = gpus_.allocate(kSize, 1);
    EXPECT_NE(devices_.find(again).value().buffer, inside.value().buffer);
    gpus_.free(again);
}

TEST_F(DevicesTest, ChecksWhatIsRegistered) {
    const uint64_t memory = gpus_.allocate(kSize, 1);
    EXPECT_TRUE(devices_.check(memory + 100, kSize - 100, 1).ok());
    const auto why = [&](uint64_t address, uint64_t size, uint64_t device) {
        return devices_.check(address, size, device).message();
    };
    EXPECT_THAT(why(memory, kSize, 0), HasSubstr("it belongs to device 1"));
    EXPECT_THAT(why(memory, kSize, 7), HasSubstr("there is no GPU 7; this process sees 2"));
    EXPECT_THAT(why(memory, kSize + 4096, 1), HasSubstr("which is no memory of a GPU"));
    std::string host(8192, 'x');
    EXPECT_THAT(why(at(host.data()), 10, 0), HasSubstr("10 bytes at 0x"));
    EXPECT_THAT(why(at(host.data()), 10, 0), HasSubstr("is no memory of a GPU"));
    ASSERT_TRUE(devices_.pin(0, host.data(), host.size()).ok());
    EXPECT_THAT(why(at(host.data()), 10, 0), HasSubstr("page-locked"));
    devices_.unpin(host.data());
    const uint64_t managed = gpus_.allocateManaged(kSize);
    EXPECT_TRUE(devices_.check(managed, kSize, 1).ok());
    gpus_.free(managed);
    gpus_.free(memory);
    EXPECT_THAT(why(memory, kSize, 1), HasSubstr("freed"));
}

TEST_F(DevicesTest, CopiesBothWaysAndAcrossGpus) {
    std::string text(kSize, '\0');
    for (size_t i = 0; i < text.size(); ++i) {
        text[i] = static_cast<char>(i * 7 + i / 251);
    }
    const uint64_t near = gpus_.allocate(kSize, 0);
    const uint64_t far = gpus_.allocate(kSize, 1);
    std::string back(kSize, '\0');
    for (const DeviceCopy& one : {DeviceCopy{near, at(text.data()), kSize},
                                  {far, near, kSize},
                                  {at(back.data()), far, kSize}}) {
        const auto batch = devices_.copy({&one, 1}, one.from == far ? 1 : 0);
        ASSERT_TRUE(batch.ok()) << batch.status().message();
        EXPECT_TRUE(batch.value()->wait().ok());
        EXPECT_EQ(batch.value()->copied(), 1U);
    }
    EXPECT_TRUE(back == text);
    gpus_.free(near);
    gpus_.free(far);
}

TEST_F(DevicesTest, ABatchTellsWhatWasCopiedBeforeItFailed) {
    const uint64_t memory = gpus_.allocate(kSize);
    std::vector<char> host(kSize);
    std::vector<DeviceCopy> copies;
    for (uint64_t i = 0; i < 4; ++i) {
        copies.push_back({at(host.data()) + i * 100, memory + i * 100, 100});
    }
    gpus_.fail("cuMemcpyAsync", 2, 1);
    auto batch = devices_.copy(copies, 0).value();
    EXPECT_THAT(batch->wait().message(), HasSubstr("cuMemcpyAsync: invalid argument"));
    EXPECT_EQ(batch->copied(), 2U);
    gpus_.fail("copy", 1, 700);
    batch = devices_.copy(copies, 0).value();
    EXPECT_THAT(batch->wait().message(), HasSubstr("an illegal memory access"));
    EXPECT_EQ(batch->copied(), 0U) << "nobody knows";
    gpus_.fail(nullptr, 0, 0);
    gpus_.free(memory);
}

TEST_F(DevicesTest, TheEndOfABatchIsTold) {
    const uint64_t memory = gpus_.allocate(kSize);
    std::vector<char> host(kSize);
    const DeviceCopy one{memory, at(host.data()), kSize};
    gpus_.hold(true);
    auto batch = devices_.copy({&one, 1}, 0).value();
    EXPECT_FALSE(batch->poll());
    std::promise<void> ended;
    batch->then([&] { ended.set_value(); });
    auto future = ended.get_future();
    EXPECT_EQ(future.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    gpus_.hold(false);
    future.wait();
    EXPECT_TRUE(batch->poll());
    bool at_once = false;
    batch->then([&] { at_once = true; });
    EXPECT_TRUE(at_once);
    gpus_.free(memory);
}

TEST_F(DevicesTest, TheThreadKeepsItsContext) {
    EXPECT_EQ(gpus_.current(), -1);
    {
        const DeviceScope outer(devices_, 1);
        ASSERT_TRUE(outer.status().ok());
        EXPECT_EQ(gpus_.current(), 1);
        const DeviceScope inner(devices_, 0);
        ASSERT_TRUE(inner.status().ok());
        EXPECT_EQ(gpus_.current(), 0);
        std::thread other([&] { EXPECT_TRUE(DeviceScope(devices_, 1).status().ok()); });
        other.join();
    }
    EXPECT_EQ(gpus_.current(), -1);
    const DeviceScope wrong(devices_, 9);
    EXPECT_THAT(wrong.status().message(), HasSubstr("GPU 9: cuDeviceGet: invalid device ordinal"));
}

TEST_F(DevicesTest, StagingBuffersAreKeptAndMayBeOrdinary) {
    const uint64_t before = gpus_.ranges();
    void* first = nullptr;
    {
        const auto buffer = devices_.staging(0, 3 << 20);
        ASSERT_TRUE(buffer.ok());
        EXPECT_EQ(buffer.value()->size(), 4U << 20);
        first = buffer.value()->data();
        EXPECT_TRUE(devices_.find(at(first)).value().pinned);
    }
    EXPECT_EQ(gpus_.ranges(), before + 1);
    EXPECT_EQ(devices_.staging(0, 4 << 20).value()->data(), first);
    gpus_.fail("cuMemHostAlloc", 0, 2);
    const auto ordinary = devices_.staging(0, 32 << 20);
    ASSERT_TRUE(ordinary.ok());
    std::memset(ordinary.value()->data(), 1, ordinary.value()->size());
}

TEST_F(DevicesTest, AllocatesAndFrees) {
    const uint64_t before = gpus_.ranges();
    {
        const auto memory = devices_.allocate(1, 100);
        ASSERT_TRUE(memory.ok()) << memory.status().message();
        EXPECT_GE(memory.value()->size(), 100U);
        EXPECT_TRUE(devices_.check(memory.value()->address(), memory.value()->size(), 1).ok());
    }
    EXPECT_EQ(gpus_.ranges(), before);
    EXPECT_THAT(devices_.allocate(5, 100).status().message(),
                HasSubstr("100 bytes on device 5: GPU 5: cuDeviceGet"));
    EXPECT_THAT(devices_.allocate(0, 1ULL << 40).status().message(), HasSubstr("out of memory"));
    EXPECT_FALSE(devices_.allocate(0, 0).ok());
    gpus_.fail("cuMemMap", 0, 2);
    EXPECT_THAT(devices_.allocate(0, 100).status().message(), HasSubstr("cuMemMap"));
    gpus_.fail(nullptr, 0, 0);
    EXPECT_EQ(gpus_.ranges(), before);
}

// Hands an allocation to another process: what it reads and writes there is seen here.
void share(testkit::StandinGpus& gpus, uint64_t address, uint64_t size) {
    std::memcpy(gpus.at(address), "hello", 5);
    Result<DeviceExport> made = devices().exportMemory(address, size);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const DeviceExport& handle = made.value();
    const pid_t child = fork();
    if (child == 0) {
        alarm(40);
        int bad = 0;
        {
            auto first = devices().importMemory(handle);
            auto second = handle.fd < 0 ? devices().importMemory(handle) : first;
            bad = !first.ok() || first.value() != second.value() ||
                  std::memcmp(gpus.at(first.value()->address()), "hello", 5) != 0;
            if (bad == 0) {
                const char word[] = "world";
                const DeviceCopy one{first.value()->address(), at(word), 5};
                auto batch = devices().copy({&one, 1}, first.value()->device());
                bad = !batch.ok() || !batch.value()->wait().ok() ? 2 : 0;
            }
        }
        _exit(bad != 0 ? bad : gpus.opened() != 0 ? 3 : 0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(gpus.text(address, 5), "world");
    if (handle.fd >= 0) {
        close(handle.fd);
    }
}

TEST_F(DevicesTest, AnotherProcessMapsAnAllocation) {
    const uint64_t memory = gpus_.allocate(kSize, 1);
    share(gpus_, memory, kSize);
    gpus_.free(memory);
}

TEST_F(DevicesTest, AnotherProcessMapsOurOwn) {
    const auto memory = devices_.allocate(1, kSize);
    ASSERT_TRUE(memory.ok());
    share(gpus_, memory.value()->address(), kSize);
}

TEST_F(DevicesTest, WhatCannotBeSharedSaysWhy) {
    const uint64_t managed = gpus_.allocateManaged(kSize);
    EXPECT_THAT(devices_.exportMemory(managed, kSize).status().message(), HasSubstr("managed"));
    gpus_.free(managed);
    std::string host(100, 'x');
    EXPECT_FALSE(devices_.exportMemory(at(host.data()), 10).ok());
    const uint64_t memory = gpus_.allocate(kSize);
    EXPECT_THAT(devices_.exportMemory(memory, kSize + 1).status().message(), HasSubstr("several"));
    DeviceExport handle = devices_.exportMemory(memory, kSize).value();
    EXPECT_THAT(devices_.importMemory(handle).status().message(), HasSubstr("cuIpcOpenMemHandle"))
        << "of this very process";
    handle.gpu[3] = 1;
    EXPECT_THAT(devices_.importMemory(handle).status().message(),
                HasSubstr("does not see the GPU"));
    gpus_.free(memory);
}

// In a process of its own: this thread forks while another is inside the driver. Gives 0 where the
// child gets a driver of its own.
int forkWhileOpening() {
    int inside[2];
    int leave[2];
    if (pipe(inside) != 0 || pipe(leave) != 0) {
        return 2;
    }
    const std::string waits = std::to_string(inside[1]) + " " + std::to_string(leave[0]);
    setenv("CUDA_STANDIN_WAITS", waits.c_str(), 1);
    bool opened = false;
    std::thread opener([&] { opened = devices().available().ok(); });
    char byte = 0;
    const bool waited = read(inside[0], &byte, 1) == 1;
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        unsetenv("CUDA_STANDIN_WAITS");
        _exit(devices().available().ok() && devices().list().value().size() == 2 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    const bool told = write(leave[1], &byte, 1) == 1;
    opener.join();
    return waited && told && opened && status == 0 ? 0 : 1;
}

TEST(Devices, AForkedChildOpensADriverOfItsOwn) {
    const pid_t fresh = fork();
    if (fresh == 0) {
        alarm(40);
        setenv("NIXL_CUDA_LIBRARY", testkit::StandinGpus::library(), 1);
        _exit(forkWhileOpening());
    }
    int status = -1;
    EXPECT_EQ(waitpid(fresh, &status, 0), fresh);
    EXPECT_EQ(status, 0);
}

// Whether `run` gives true in a process that has not opened the driver.
bool elsewhere(const std::function<bool()>& run) {
    const pid_t fresh = fork();
    if (fresh == 0) {
        alarm(40);
        _exit(run() ? 0 : 1);
    }
    int status = -1;
    return waitpid(fresh, &status, 0) == fresh && status == 0;
}

TEST(Devices, WithoutADriverEveryCallSaysSo) {
    EXPECT_TRUE(elsewhere([] {
        setenv("NIXL_CUDA_LIBRARY", "/nowhere/libcuda.so", 1);
        const Status why = devices().available();
        return why.code() == ErrorCode::NOT_SUPPORTED &&
               why.message().find("/nowhere/libcuda.so") != std::string::npos &&
               !devices().list().ok() && !devices().check(4096, 10, 0).ok() &&
               !devices().copy({}, 0).ok() && !devices().allocate(0, 10).ok();
    }));
    EXPECT_TRUE(elsewhere([] {
        setenv("NIXL_CUDA_LIBRARY", testkit::StandinGpus::library(), 1);
        setenv("CUDA_STANDIN_DEVICES", "0", 1);
        return devices().available().message().find("no CUDA-capable device") != std::string::npos;
    }));
    EXPECT_TRUE(elsewhere([] {
        setenv("NIXL_CUDA_LIBRARY", "libc.so.6", 1);
        return devices().available().message().find("libc.so.6 has no cuInit") != std::string::npos;
    }));
}

}  // namespace
}  // namespace nixl::device
