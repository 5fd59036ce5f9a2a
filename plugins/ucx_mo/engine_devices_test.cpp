// How network devices are dealt out to engines.
#include "engine_devices.h"

#include <gtest/gtest.h>

namespace nixl::ucx_mo {
namespace {

using Names = std::vector<std::string>;

const Names kPresent = {"eth0", "lo", "mlx5_0", "mlx5_1", "mlx5_2"};

Names dealt(std::string_view list, size_t engines) {
    Result<Names> made = dealDevices(list, engines, kPresent);
    EXPECT_TRUE(made.ok()) << made.status().message();
    return made.ok() ? made.value() : Names();
}

TEST(DealDevices, EachIsAGroupWithoutASeparatorOfGroups) {
    EXPECT_EQ(dealt("mlx5_0:1,mlx5_1:1", 0), (Names{"mlx5_0:1", "mlx5_1:1"}));
    EXPECT_EQ(dealt(" mlx5_0 , eth0 ", 2), (Names{"mlx5_0", "eth0"}));
    EXPECT_EQ(dealt("eth0", 0), Names{"eth0"});
}

TEST(DealDevices, GroupsStayTogether) {
    EXPECT_EQ(dealt("mlx5_0, mlx5_1;eth0", 0), (Names{"mlx5_0,mlx5_1", "eth0"}));
    EXPECT_EQ(dealt("mlx5_0,mlx5_1;", 0), Names{"mlx5_0,mlx5_1"});
}

TEST(DealDevices, MoreGroupsThanEnginesAndLess) {
    EXPECT_EQ(dealt("mlx5_0,mlx5_1,mlx5_2,eth0", 2), (Names{"mlx5_0,mlx5_1", "mlx5_2,eth0"}));
    EXPECT_EQ(dealt("mlx5_0,mlx5_1,mlx5_2", 2), (Names{"mlx5_0,mlx5_1", "mlx5_2"}));
    EXPECT_EQ(dealt("mlx5_0,eth0", 3), (Names{"mlx5_0", "eth0", "mlx5_0"}));
}

TEST(DealDevices, WithoutDevicesTheLibraryChooses) {
    EXPECT_EQ(dealt("", 0), Names{""});
    EXPECT_EQ(dealt("", 3), (Names{"", "", ""}));
    EXPECT_EQ(dealt("all", 2), (Names{"all", "all"}));
    EXPECT_EQ(dealt("^lo", 2), (Names{"^lo", "^lo"}));
}

TEST(DealDevices, ADeviceThatIsNotThereIsNamedWithThoseThatAre) {
    for (const char* list : {"eth9", "eth0,eth9", "lo;mlx5_0,eth9:1"}) {
        const Result<Names> made = dealDevices(list, 2, kPresent);
        ASSERT_FALSE(made.ok()) << list;
        EXPECT_EQ(made.status().code(), ErrorCode::INVALID_PARAM);
        EXPECT_NE(made.status().message().find("\"eth9"), std::string::npos);
        EXPECT_NE(made.status().message().find("eth0 lo mlx5_0 mlx5_1 mlx5_2"), std::string::npos)
            << made.status().message();
    }
}

}  // namespace
}  // namespace nixl::ucx_mo
