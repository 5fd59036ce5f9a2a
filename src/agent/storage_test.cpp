// Removing many names, secrets among parameters, and how far a transfer has come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/agent.h"

#include "testing/agents.h"

namespace nixl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class AgentStorageTest : public ::testing::Test {
  protected:
    AgentStorageTest() {
        RegistrationList list(MemType::OBJECT);
        for (uint64_t i = 0; i < 3; ++i) {
            list.append(0, 8, i + 1, "key-" + std::to_string(i));
        }
        agent_.registerMemory(list, {});
        agent_.registerMemory(RegistrationList({MemDescriptor(bytes_, sizeof(bytes_))}), {});
    }
    TransferHandle write() {
        DescriptorList near(MemType::DRAM);
        DescriptorList far(MemType::OBJECT);
        for (uint64_t i = 0; i < 3; ++i) {
            near.append(reinterpret_cast<uint64_t>(bytes_) + 8 * i, 8);
            far.append(0, 8, i + 1);
        }
        return agent_.prepareTransfer(OpType::WRITE, near, far, agent_.name());
    }

    char bytes_[24] = {};
    Agent agent_{"storage", testkit::objectsConfig({{"bucket", "storage-test"}, {"word", "hush"}})};
};

TEST_F(AgentStorageTest, RemovesManyAndTellsOfEach) {
    TransferHandle handle = write();
    agent_.postTransfer(handle);
    ASSERT_EQ(agent_.waitTransfer(handle), XferState::DONE);
    const std::vector<std::string> names{"key-0", "missing", "key-2"};
    const std::vector<Status> ends = agent_.removeStorage("OBJECTS", names);
    ASSERT_EQ(ends.size(), 3U);
    EXPECT_TRUE(ends[0].ok());
    EXPECT_EQ(ends[1].code(), ErrorCode::NOT_FOUND);
    EXPECT_TRUE(ends[2].ok());
    const auto left = agent_.listStorage("OBJECTS", "");
    ASSERT_EQ(left.size(), 1U);
    EXPECT_EQ(left[0].name, "key-1");
    EXPECT_TRUE(agent_.removeStorage("OBJECTS", std::vector<std::string>()).empty());
}

TEST_F(AgentStorageTest, ProgressBeforeAndAfter) {
    TransferHandle handle = write();
    EXPECT_EQ(agent_.transferProgress(handle.id()).bytesDone, 0U);
    EXPECT_EQ(agent_.transferProgress(handle.id()).bytesTotal, 24U);
    agent_.postTransfer(handle);
    ASSERT_EQ(agent_.waitTransfer(handle), XferState::DONE);
    EXPECT_EQ(agent_.transferProgress(handle.id()).bytesDone, 24U);
}

TEST_F(AgentStorageTest, SecretsAreNotShown) {
    EXPECT_EQ(agent_.backendParameters("OBJECTS").at("word"), "***");
    EXPECT_EQ(agent_.backendParameters("OBJECTS").at("bucket"), "storage-test");
    EXPECT_THAT(agent_.dumpState(), Not(HasSubstr("hush")));
    const auto parameters = agent_.pluginParameters("OBJECTS");
    EXPECT_EQ(parameters.back().type, "secret");
}

}  // namespace
}  // namespace nixl
