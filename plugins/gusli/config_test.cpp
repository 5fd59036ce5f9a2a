// Lists of devices: what is understood, and what each mistake is told.
#include "config.h"

#include "gusli_test_support.h"

namespace nixl::gusli {
namespace {

using testing::HasSubstr;

std::string mistake(const std::string& text) {
    const auto read = readConfig(text);
    return read.ok() ? "none" : read.status().message();
}

TEST(GusliConfig, ReadsEachKindOfLine) {
    const auto read = readConfig(
        "# Config file\nversion=1\n\n11 F W N ./store0.bin sec=0x3\r\n"
        "  14 K X D /dev/nvme0n1 sec=0x7\n050e8400050e8407 F R N /a\n20 N W N t192.0.2.1 sec=0x10");
    ASSERT_TRUE(read.ok()) << read.status().message();
    const std::vector<DeviceConfig>& all = read.value();
    ASSERT_EQ(all.size(), 4U);
    EXPECT_EQ(all[0].id, "11");
    EXPECT_EQ(all[0].kind, Kind::FILE);
    EXPECT_EQ(all[0].path, "./store0.bin");
    EXPECT_EQ(all[0].security, "sec=0x3");
    EXPECT_EQ(all[1].kind, Kind::KERNEL);
    EXPECT_EQ(all[1].access, Access::EXCLUSIVE);
    EXPECT_EQ(all[2].access, Access::READ);
    EXPECT_EQ(all[3].kind, Kind::NETWORK);
    EXPECT_EQ(findDevice(all, 14, ""), &all[1]);
    EXPECT_EQ(findDevice(all, 0, "050e8400050e8407"), &all[2]);
    EXPECT_EQ(findDevice(all, 12, ""), nullptr);
}

TEST(GusliConfig, TheVersionMayStandInTheFirstComment) {
    EXPECT_EQ(mistake("# version=1, bdevs: id, type, access, direct, path, cookie\n1 F W N /a"),
              "none");
}

TEST(GusliConfig, APathIsRead) {
    const TempFolder folder;
    std::ofstream(folder / "list") << "version=1\n1 F W N /a sec=0x3\n";
    EXPECT_EQ(mistake(folder / "list"), "none");
    std::ofstream(folder / "wrong") << "version=1\n1 F W N\n";
    EXPECT_THAT(mistake(folder / "wrong"), HasSubstr("/wrong\" line 2: has 4 words"));
    EXPECT_THAT(mistake(folder / "none"), HasSubstr("/none\": No such file or directory"));
    EXPECT_THAT(mistake(folder / ""), HasSubstr("Is a directory"));
}

TEST(GusliConfig, EachMistakeIsNamedWithItsLine) {
    EXPECT_THAT(mistake(""), HasSubstr("config_file is missing"));
    EXPECT_THAT(mistake("1 F W N /a\n"), HasSubstr("\"version=1\" has to come before"));
    EXPECT_THAT(mistake("version=2\n1 F W N /a\n"), HasSubstr("line 1: \"version=2\": only"));
    EXPECT_THAT(mistake("version=x\n"), HasSubstr("only version=1 is known"));
    EXPECT_THAT(mistake("version=1\n"), HasSubstr("config_file has no device"));
    EXPECT_THAT(mistake("version=1\n1 Q W N /a\n"), HasSubstr("line 2: the kind \"Q\""));
    EXPECT_THAT(mistake("version=1\n1 F Q N /a\n"), HasSubstr("the access \"Q\""));
    EXPECT_THAT(mistake("version=1\n1 F W Q /a\n"), HasSubstr("the fourth word \"Q\""));
    EXPECT_THAT(mistake("version=1\n1 F W N /a 0x3\n"), HasSubstr("\"0x3\" does not begin with"));
    EXPECT_THAT(mistake("version=1\n1/2 F W N /a\n"), HasSubstr("the id \"1/2\""));
    EXPECT_THAT(mistake("version=1\n1 F W N /a\n01 F W N /b\n"),
                HasSubstr("line 3: the id 01 is that of line 2"));
    EXPECT_THAT(mistake("version=1\n1 F W N /a sec=1 more\n"), HasSubstr("has 7 words"));
}

}  // namespace
}  // namespace nixl::gusli
