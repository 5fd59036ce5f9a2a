// A device id of storage that is registered anew for something else, over the test backend OBJECTS.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/agents.h"
#include "testing/object_backend.h"

namespace nixl::testkit {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSize = 64;

class DeviceIdsTest : public ::testing::Test {
  protected:
    DeviceIdsTest() : agent_("ids", objectsConfig({{"bucket", "ids"}})) {
        agent_.registerMemory(RegistrationList{{memory(), kSize}}, {});
    }

    uint64_t memory() const { return reinterpret_cast<uint64_t>(memory_.data()); }
    void enter(const std::string& key) {
        agent_.registerMemory(RegistrationList{{0, kSize, 5, MemType::OBJECT, key}}, {});
    }
    void leave(const std::string& key) {
        agent_.deregisterMemory(RegistrationList{{0, kSize, 5, MemType::OBJECT, key}}, {});
    }
    TransferHandle prepare() {
        return agent_.prepareTransfer(OpType::WRITE, {{memory(), kSize}},
                                      {{0, kSize, 5, MemType::OBJECT}}, "ids");
    }
    void write(const TransferHandle& handle, char byte) {
        memory_.assign(kSize, byte);
        agent_.postTransfer(handle.id());
        EXPECT_EQ(agent_.waitTransfer(handle.id()), XferState::DONE);
    }
    // What is stored; "" where there is no such object.
    std::string stored(const std::string& key) {
        std::string bytes(kSize, '\0');
        const auto got =
            store_->get(key, 0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
        return got ? bytes.substr(0, *got) : "";
    }

    std::vector<char> memory_ = std::vector<char>(kSize);
    std::shared_ptr<ObjectStore> store_ = ObjectStore::open("ids");
    Agent agent_;
};

TEST_F(DeviceIdsTest, TheNewestRegistrationCounts) {
    for (const std::string key : {"first", "second", "third"}) {  // and none is ever taken back
        enter(key);
        write(prepare(), key[0]);
        EXPECT_EQ(stored(key), std::string(kSize, key[0]));
    }
    EXPECT_EQ(stored("first"), std::string(kSize, 'f'));
    EXPECT_EQ(stored("second"), std::string(kSize, 's'));
    for (const char* key : {"first", "third", "second"}) {  // late, but no mistake
        leave(key);
    }
    errorOf(ErrorCode::NOT_FOUND, [&] { leave("third"); });
}

TEST_F(DeviceIdsTest, WhatWasPreparedForAnEarlierOneIsRefused) {
    enter("early");
    const TransferHandle old = prepare();
    const PreparedList local = agent_.prepareList("", {{memory(), kSize}});
    const PreparedList remote = agent_.prepareList("ids", {{0, kSize, 5, MemType::OBJECT}});
    enter("late");
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND, [&] { agent_.postTransfer(old.id()); }),
                HasSubstr("device 5 (\"early\") has been registered anew"));
    EXPECT_THAT(errorOf(ErrorCode::NOT_FOUND,
                        [&] {
                            const std::span<const int64_t> all;
                            agent_.prepareTransfer(OpType::WRITE, local.id(), all, remote.id(),
                                                   all);
                        }),
                HasSubstr("registered anew"));
    write(prepare(), 'x');
    EXPECT_EQ(stored("early"), "");
    EXPECT_EQ(stored("late"), std::string(kSize, 'x'));
    enter("late");  // the same once more changes nothing for what was prepared
    const TransferHandle handle = prepare();
    enter("late");
    write(handle, 'y');
    EXPECT_EQ(stored("late"), std::string(kSize, 'y'));
}

}  // namespace
}  // namespace nixl::testkit
