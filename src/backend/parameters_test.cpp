// Parameters: types, ranges, choices, prefixes, unknown keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/plugins.h"

namespace nixl::backend {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const ParameterSpec kSpecs[] = {
    {"use_ring", ParameterType::BOOL, "false", "kernel ring"},
    {"depth", ParameterType::INTEGER, "128", "queue depth", 1, 4096},
    {"merge", ParameterType::SIZE, "1M", "largest merged request", 4096, 1 << 30},
    {"timeout", ParameterType::DURATION, "1.5s", "how long", 0, 60},
    {"bucket", ParameterType::STRING, nullptr, "where"},
    {"mode", ParameterType::CHOICE, "auto", "how", 0, 0, "auto|fast|safe"},
    {"LIB_*", ParameterType::STRING, nullptr, "passed to the library"},
};

PluginTable makeTable() {
    PluginTable table{};
    table.abi = kPluginAbi;
    table.name = "TEST";
    table.parameters = kSpecs;
    table.parameterCount = std::size(kSpecs);
    return table;
}

using Given = std::map<std::string, std::string>;

class ParametersTest : public testing::Test {
  protected:
    Result<Parameters> validate(const Given& given) {
        return validateParameters(
            table_, given, [this](std::string text) { warnings_.push_back(std::move(text)); });
    }
    std::string refusal(const std::string& key, const std::string& value) {
        const auto result = validate({{key, value}});
        EXPECT_FALSE(result.ok()) << key << "=" << value;
        EXPECT_EQ(result.status().code(), ErrorCode::INVALID_PARAM);
        return result.status().message();
    }

    const PluginTable table_ = makeTable();
    std::vector<std::string> warnings_;
};

TEST_F(ParametersTest, DefaultsAreFilledIn) {
    const auto result = validate({});
    ASSERT_TRUE(result.ok());
    const Parameters& parameters = result.value();
    EXPECT_FALSE(parameters.flag("use_ring"));
    EXPECT_EQ(parameters.integer("depth"), 128);
    EXPECT_EQ(parameters.size("merge"), 1U << 20);
    EXPECT_DOUBLE_EQ(parameters.seconds("timeout"), 1.5);
    EXPECT_EQ(parameters.text("bucket"), "");
    EXPECT_EQ(parameters.text("mode"), "auto");
    EXPECT_FALSE(parameters.given("depth"));
    EXPECT_EQ(parameters.values().size(), 6U);
    EXPECT_EQ(parameters.text("no such"), "");
}

TEST_F(ParametersTest, ReadsEveryType) {
    const auto result = validate({{"use_ring", "True"},
                                  {"depth", "4096"},
                                  {"merge", "64k"},
                                  {"timeout", "250ms"},
                                  {"bucket", "b 1"},
                                  {"mode", "safe"},
                                  {"LIB_LEVEL", "7"}});
    ASSERT_TRUE(result.ok()) << result.status().message();
    const Parameters& parameters = result.value();
    EXPECT_TRUE(parameters.flag("use_ring"));
    EXPECT_EQ(parameters.integer("depth"), 4096);
    EXPECT_EQ(parameters.size("merge"), 65536U);
    EXPECT_DOUBLE_EQ(parameters.seconds("timeout"), 0.25);
    EXPECT_EQ(parameters.text("bucket"), "b 1");
    EXPECT_EQ(parameters.text("LIB_LEVEL"), "7");
    EXPECT_TRUE(parameters.given("LIB_LEVEL"));
    EXPECT_TRUE(parameters.given("depth"));
    EXPECT_TRUE(warnings_.empty());
    EXPECT_DOUBLE_EQ(validate({{"timeout", "20us"}}).value().seconds("timeout"), 20e-6);
    EXPECT_DOUBLE_EQ(validate({{"timeout", "2"}}).value().seconds("timeout"), 2);
}

TEST_F(ParametersTest, BooleansInEveryWordAndCase) {
    for (const char* yes :
         {"true", "1", "yes", "y", "on", "enable", "True", "YES", "Y", "ON", "Enable"}) {
        const auto result = validate({{"use_ring", yes}});
        ASSERT_TRUE(result.ok()) << yes << ": " << result.status().message();
        EXPECT_TRUE(result.value().flag("use_ring")) << yes;
    }
    for (const char* no :
         {"false", "0", "no", "n", "off", "disable", "False", "NO", "N", "Off", "DISABLE"}) {
        const auto result = validate({{"use_ring", no}});
        ASSERT_TRUE(result.ok()) << no << ": " << result.status().message();
        EXPECT_FALSE(result.value().flag("use_ring")) << no;
    }
    for (const char* neither : {"", "enabled", "ye", "t", "f", "2", "01", "-1", " y"}) {
        refusal("use_ring", neither);
    }
}

TEST_F(ParametersTest, IllTypedIsRefusedNamingAll) {
    EXPECT_EQ(refusal("depth", "many"),
              "TEST: parameter depth=\"many\": must be an integer from 1 to 4096");
    EXPECT_THAT(refusal("use_ring", "maybe"), HasSubstr("must be one of true, false, 1, 0"));
    EXPECT_THAT(refusal("mode", "slow"), HasSubstr("must be one of auto|fast|safe"));
    EXPECT_THAT(refusal("merge", "1"), HasSubstr("from 4096 to 1073741824 bytes"));
    EXPECT_THAT(refusal("timeout", "61"), HasSubstr("must be a duration from 0 to 60 seconds"));
}

TEST_F(ParametersTest, EdgesAreRefused) {
    for (const char* value :
         {"", " 1", "1 ", "0", "4097", "-1", "1.0", "0x10", "1e2", "+-1", "99999999999999999999"}) {
        refusal("depth", value);
    }
    for (const char* value : {"", "K", "-4K", "4KK", "9223372036854775807K", "2G", "1.5M", "1T"}) {
        refusal("merge", value);
    }
    for (const char* value : {"", "s", "-1", "inf", "nan", "1h", "1 s", "1e1"}) {
        refusal("timeout", value);
    }
    for (const char* value : {"", "auto|fast", "AUTO", "aut"}) {
        refusal("mode", value);
    }
}

TEST_F(ParametersTest, UnknownKeysAreOneWarning) {
    const auto result = validate({{"active", "true"}, {"detph", "3"}, {"depth", "3"}});
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result.value().integer("depth"), 3);
    EXPECT_EQ(result.value().values().count("active"), 0U);
    EXPECT_THAT(warnings_,
                ElementsAre(AllOf(HasSubstr("TEST: ignoring unknown parameters active, detph "),
                                  HasSubstr("(did you mean depth?)"),
                                  HasSubstr("valid are: use_ring, depth, merge, timeout, "))));
}

}  // namespace
}  // namespace nixl::backend
