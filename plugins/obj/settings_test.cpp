// Parameters, environment, files, endpoints; no store is asked.
#include "settings.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "parameters.h"

namespace nixl::obj {
namespace {

using ::testing::HasSubstr;

// Sets variables for one test, all others of AWS's and ours are away.
class SettingsTest : public ::testing::Test {
  protected:
    SettingsTest() {
        for (const char* name :
             {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_DEFAULT_BUCKET", "AWS_ENDPOINT_URL",
              "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CA_BUNDLE",
              "NIXL_OBJ_BUCKET", "NIXL_OBJ_REGION", "NIXL_OBJ_SCHEME"}) {
            unsetenv(name);
        }
        setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
        setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
    }
    Result<Settings> read(const std::map<std::string, std::string>& given) {
        Parameters parameters;
        for (const ParameterSpec& spec : kParameters) {
            parameters.set(spec.name, spec.defaultValue, false);
        }
        for (const auto& [key, value] : given) {
            parameters.set(key, value, true);
        }
        notes_.clear();
        return readSettings(parameters, chooseProfile(parameters), notes_);
    }
    std::string error(const std::map<std::string, std::string>& given) {
        return read(given).status().message();
    }
    std::vector<std::string> notes_;
};

TEST_F(SettingsTest, DefaultsAreHiCaches) {
    const auto settings = read({{"bucket", "my-bucket"}});
    ASSERT_TRUE(settings.ok()) << settings.status().message();
    EXPECT_EQ(settings.value().threads, 4U);
    EXPECT_TRUE(settings.value().checksumRequired);
    EXPECT_EQ(settings.value().region, "us-east-1");
    EXPECT_EQ(settings.value().endpoint.text(), "https://s3.us-east-1.amazonaws.com");
    EXPECT_TRUE(settings.value().endpoint.virtualHost);
    EXPECT_TRUE(notes_.empty());
}

TEST_F(SettingsTest, TheBucketComesFromTheEnvironment) {
    EXPECT_THAT(error({}), HasSubstr("AWS_DEFAULT_BUCKET"));
    setenv("AWS_DEFAULT_BUCKET", "from-aws", 1);
    EXPECT_EQ(read({}).value().bucket, "from-aws");
    setenv("NIXL_OBJ_BUCKET", "from-nixl", 1);
    EXPECT_EQ(read({}).value().bucket, "from-nixl");
    EXPECT_EQ(read({{"bucket", "given"}}).value().bucket, "given");
    EXPECT_THAT(error({{"bucket", "a/b"}}), HasSubstr("bucket \"a/b\""));
}

TEST_F(SettingsTest, PathStyleWhereTheNameAllowsNoOther) {
    struct {
        const char* endpoint;
        const char* bucket;
        const char* why;
    } const cases[] = {{"http://10.0.0.1:9000", "bucket", "IP address"},
                       {"http://[::1]:9000", "bucket", "IP address"},
                       {"localhost:9000", "bucket", "single label"},
                       {"http://minio", "bucket", "single label"},
                       {"http://store.example", "Big_Bucket", "no host name"},
                       {"https://store.example", "a.b.c", "certificate"}};
    for (const auto& one : cases) {
        const auto settings = read({{"endpoint_override", one.endpoint}, {"bucket", one.bucket}});
        ASSERT_TRUE(settings.ok()) << settings.status().message();
        EXPECT_FALSE(settings.value().endpoint.virtualHost) << one.endpoint;
        ASSERT_EQ(notes_.size(), 1U);
        EXPECT_THAT(notes_[0], HasSubstr(one.why));
    }
    EXPECT_TRUE(read({{"endpoint_override", "http://store.example:9000"}, {"bucket", "bucket"}})
                    .value()
                    .endpoint.virtualHost);
    EXPECT_FALSE(read({{"endpoint_override", "http://store.example"},
                       {"bucket", "bucket"},
                       {"use_virtual_addressing", "false"}})
                     .value()
                     .endpoint.virtualHost);
    EXPECT_TRUE(notes_.empty());
}

TEST_F(SettingsTest, Endpoints) {
    EXPECT_EQ(parseEndpoint("HTTPS://Store.Example:443/pre/", "http").value().text(),
              "https://store.example/pre");
    EXPECT_EQ(parseEndpoint("store.example:9000", "https").value().text(),
              "https://store.example:9000");
    EXPECT_EQ(parseEndpoint("http://store:80", "https").value().host, "store");
    for (const char* bad : {"ftp://x", "http://", "http://a b", "http://x?y", "://x"}) {
        const auto wrong = parseEndpoint(bad, "http");
        ASSERT_FALSE(wrong.ok()) << bad;
        EXPECT_THAT(wrong.status().message(), HasSubstr(bad));
    }
    // No password in a message.
    const auto secret = parseEndpoint("http://user:word@host", "http");
    ASSERT_FALSE(secret.ok());
    EXPECT_THAT(secret.status().message(), ::testing::Not(HasSubstr("word@")));
    setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.example:1", 1);
    EXPECT_EQ(read({{"bucket", "bkt"}}).value().endpoint.host, "elsewhere.example:1");
    unsetenv("AWS_ENDPOINT_URL_S3");
    EXPECT_EQ(read({{"bucket", "bkt"}, {"region", "cn-north-1"}}).value().endpoint.host,
              "s3.cn-north-1.amazonaws.com.cn");
}

TEST_F(SettingsTest, ProfilesOfFiles) {
    const Sections sections = parseIni(
        "# remark\n[default]\nAWS_Access_Key_Id = A = B \n[profile  dev ]\nregion=eu-1\ns3 =\n"
        "  endpoint_url = nested\n[broken\nx=y\n");
    EXPECT_EQ(sections.at("default").at("aws_access_key_id"), "A = B");
    EXPECT_EQ(sections.at("profile  dev").at("region"), "eu-1");
    EXPECT_FALSE(sections.at("profile  dev").contains("endpoint_url"));
    EXPECT_FALSE(sections.at("profile  dev").contains("x"));
    const std::string path =
        std::filesystem::temp_directory_path() / ("nixl_obj_config_" + std::to_string(getpid()));
    std::ofstream(path) << "[default]\nregion = one\n[profile dev]\nregion = two\n";
    setenv("AWS_CONFIG_FILE", path.c_str(), 1);
    EXPECT_EQ(read({{"bucket", "bkt"}}).value().region, "one");
    setenv("AWS_PROFILE", "dev", 1);
    EXPECT_EQ(read({{"bucket", "bkt"}}).value().region, "two");
    EXPECT_EQ(read({{"bucket", "bkt"}, {"profile", "default"}}).value().region, "one");
    std::filesystem::remove(path);
}

TEST_F(SettingsTest, TheCaBundleMustBeThere) {
    EXPECT_THAT(error({{"bucket", "bkt"}, {"ca_bundle", "/no/such/file"}}),
                HasSubstr("ca_bundle \"/no/such/file\""));
}

}  // namespace
}  // namespace nixl::obj
