// What the settings of an etcd may be, and what is said of those that may not.
#include "exchange_etcd/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "exchange_etcd/base64.h"
#include "exchange_etcd/json.h"

namespace nixl::exchange_etcd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(EtcdSettings, EndpointsOfEveryForm) {
    const auto read =
        readSettings({{"endpoints", "http://a:1, b:2;https://c:3/;[::1]:4,d,http://[fd00::2]"}});
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_THAT(read.value().endpoints,
                ElementsAre("http://a:1", "http://b:2", "https://c:3", "http://[::1]:4",
                            "http://d:2379", "http://[fd00::2]:2379"));
}

TEST(EtcdSettings, WhatIsWrongIsNamed) {
    const auto why = [](std::map<std::string, std::string> texts) {
        texts.try_emplace("endpoints", "a:1");
        const auto read = readSettings(texts);
        EXPECT_EQ(read.status().code(), ErrorCode::INVALID_PARAM);
        return read.status().message();
    };
    EXPECT_THAT(why({{"endpoints", ""}}), HasSubstr("none is named"));
    EXPECT_THAT(why({{"endpoints", " , ;"}}), HasSubstr("none is named"));
    EXPECT_THAT(why({{"endpoints", "ftp://a:1"}}), HasSubstr("ftp://a:1\" is not HTTP"));
    EXPECT_THAT(why({{"endpoints", "a:0"}}), HasSubstr("\"a:0\" has no port"));
    EXPECT_THAT(why({{"endpoints", "a:65536"}}), HasSubstr("has no port"));
    EXPECT_THAT(why({{"endpoints", "::1:2379"}}), HasSubstr("without brackets"));
    EXPECT_THAT(why({{"endpoints", ":2379"}}), HasSubstr("has no host"));
    EXPECT_THAT(why({{"endpoints", "http://a:1/v3"}}), HasSubstr("more than a host and a port"));
    const std::string secret = why({{"endpoints", "http://me:secret@a:1"}});
    EXPECT_THAT(secret, HasSubstr("NIXL_ETCD_PASSWORD"));
    EXPECT_EQ(secret.find("secret@"), std::string::npos) << "a password is not told";
    EXPECT_THAT(why({{"ca", "/nowhere/ca.pem"}}),
                HasSubstr("ca=\"/nowhere/ca.pem\": No such file"));
    EXPECT_THAT(why({{"cert", "/dev/null"}}), HasSubstr("one is given without the other"));
    EXPECT_THAT(why({{"user", "me"}}), HasSubstr("user and password"));
    EXPECT_THAT(why({{"password_file", "/nowhere"}}), HasSubstr("password_file=\"/nowhere\""));
    EXPECT_THAT(why({{"lease_time", "1"}}), HasSubstr("lease_time=\"1\""));
    EXPECT_THAT(why({{"lease_time", "nan"}}), HasSubstr("between 2 and 86400"));
    EXPECT_THAT(why({{"timeout", "5s"}}), HasSubstr("timeout=\"5s\""));
}

TEST(EtcdBase64, ThereAndBack) {
    std::string bytes;
    for (int i = 0; i < 300; ++i) {
        EXPECT_EQ(fromBase64(toBase64(bytes)), bytes);
        bytes += static_cast<char>(i * 7);
    }
    EXPECT_EQ(toBase64("Ma"), "TWE=");
    EXPECT_FALSE(fromBase64("TWE").has_value());
    EXPECT_FALSE(fromBase64("TW-_").has_value());
    EXPECT_FALSE(fromBase64("T===").has_value() && fromBase64("====").has_value());
}

TEST(EtcdJson, NumbersAreTextAndMayBeAbsent) {
    const Json answer = Json::parse(R"({"a":"-12","b":7,"c":"x","d":{}})");
    EXPECT_EQ(numberOf(answer, "a"), -12);
    EXPECT_EQ(numberOf(answer, "b"), 7);
    EXPECT_EQ(numberOf(answer, "c"), 0);
    EXPECT_EQ(numberOf(answer, "absent"), 0);
    EXPECT_EQ(numberOf(field(answer, "d"), "a"), 0);
    EXPECT_EQ(rangeEnd("a/"), "a0");
    EXPECT_EQ(rangeEnd("a\xff"), "b");
    EXPECT_EQ(rangeEnd("\xff"), std::string(1, '\0'));
}

}  // namespace
}  // namespace nixl::exchange_etcd
