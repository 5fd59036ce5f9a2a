// Posting a prepared transfer again allocates nothing, on each lane: operator new is counted on the
// thread that posts and polls.
#include <cstdlib>
#include <new>
#include <string>

#include <gtest/gtest.h>

#include "support.h"

namespace {

// Unused where nothing is counted.
[[maybe_unused]] thread_local uint64_t allocations = 0;

}  // namespace

// The sanitizers bring their own, which must not be mixed with these.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define NIXL_NOT_COUNTED 1
#endif
#endif
#ifndef NIXL_NOT_COUNTED
void* operator new(size_t size) {
    ++allocations;
    void* const block = std::malloc(size);
    if (block == nullptr) {
        throw std::bad_alloc();
    }
    return block;
}
void operator delete(void* block) noexcept {
    std::free(block);
}
void operator delete(void* block, size_t /*size*/) noexcept {
    std::free(block);
}
#endif
#else
#define NIXL_NOT_COUNTED 1
#endif

namespace nixl::crosstest {
namespace {

struct Case {
    const char* lane;
    OpType op;
};

class AllocationsTest : public testing::TestWithParam<Case> {
  protected:
    AllocationsTest() {
        nearMemory_ = near_.registerMemory({{source_.data(), source_.size()}});
        farMemory_ = far_.registerMemory({{target_.data(), target_.size()}});
        near_.addPeer(far_.metadata());
        handle_ = near_.prepareTransfer(GetParam().op, list(source_), list(target_), "far");
    }
    static DescriptorList list(std::string& bytes) {
        DescriptorList made(MemType::DRAM);
        made.append(reinterpret_cast<uint64_t>(bytes.data()), bytes.size());
        return made;
    }
    static AgentConfig config() { return configFor("UCX", {{"lanes", GetParam().lane}}); }
    // As who polls does, on both sides.
    void postAndPoll() {
        near_.postTransfer(handle_);
        while (near_.checkTransfer(handle_) != XferState::DONE) {
            far_.takeNotifications();
        }
    }

    std::string source_ = std::string(4096, 's');
    std::string target_ = std::string(4096, 't');
    Agent far_{"far", config()};
    Agent near_{"near", config()};
    RegistrationHandle farMemory_;
    RegistrationHandle nearMemory_;
    TransferHandle handle_;
};

TEST_P(AllocationsTest, PostingAgainAllocatesNothing) {
#ifdef NIXL_NOT_COUNTED
    GTEST_SKIP() << "the sanitizer's own operator new cannot be counted";
#else
    for (int i = 0; i < 50; ++i) {
        postAndPoll();
    }
    EXPECT_EQ(near_.explainTransfer(handle_.id()).lane, GetParam().lane);
    EXPECT_EQ(source_, target_);
    const uint64_t before = allocations;
    constexpr uint64_t kPosts = 1000;
    for (uint64_t i = 0; i < kPosts; ++i) {
        postAndPoll();
    }
    // Where another thread still holds what belongs to the last post, the next one makes its own:
    // once for each kind, since both are used again.
    EXPECT_LE(allocations - before, 8U) << "in " << kPosts << " posts";
    ::operator delete(::operator new(1));
    EXPECT_GT(allocations, before) << "nothing is counted";
#endif
}

INSTANTIATE_TEST_SUITE_P(Lanes,
                         AllocationsTest,
                         testing::Values(Case{"local", OpType::WRITE},
                                         Case{"local", OpType::READ},
                                         Case{"host", OpType::WRITE},
                                         Case{"host", OpType::READ},
                                         Case{"stream", OpType::WRITE},
                                         Case{"stream", OpType::READ}),
                         [](const auto& info) {
                             return std::string(info.param.lane) + "_" +
                                    (info.param.op == OpType::WRITE ? "WRITE" : "READ");
                         });

}  // namespace
}  // namespace nixl::crosstest
